/* See profile_cache.h. A list of nodes in the order of their last use, and for each allocation an
 * array from sectors to nodes. */
#include "kernels/emulate/profile_cache.h"

namespace ii_emu {

static const uint32_t WHOLE = 0xffffffffu;

sector_cache::sector_cache(size_t bytes, cache_listener *to)
    : nodes(1), most(bytes / 32), listener(to) {}

void sector_cache::unlink(uint32_t i) {
  nodes[nodes[i].previous].next = nodes[i].next;
  nodes[nodes[i].next].previous = nodes[i].previous;
}

void sector_cache::push_front(uint32_t i) {
  nodes[i].previous = 0;
  nodes[i].next = nodes[0].next;
  nodes[nodes[0].next].previous = i;
  nodes[0].next = i;
}

/* Fetches what of the sector is not here. */
void sector_cache::fetch(node &n, cache_owner who) {
  n.valid = WHOLE;
  listener->fetched(who);
}

/* Takes node i out; it is nobody's then. */
void sector_cache::evict(uint32_t i) {
  node &n = nodes[i];
  if (n.dirty) {
    if (n.valid != WHOLE) fetch(n, n.writer);
    listener->written(n.writer);
  }
  n.range->nodes[n.sector] = 0;
  unlink(i);
}

/* The node of a sector, made the latest one; found: whether it was there. */
sector_cache::node &sector_cache::at(cached_range &r, size_t sector, bool *found) {
  uint32_t i = r.nodes[sector];
  *found = i != 0;
  if (i) {
    unlink(i);
  } else {
    if (!unused.empty()) {
      i = unused.back();
      unused.pop_back();
    } else if (nodes.size() <= most) {
      i = (uint32_t)nodes.size();
      nodes.push_back(node());
    } else {
      i = nodes[0].previous;
      evict(i);
    }
    r.nodes[sector] = i;
    nodes[i] = node();
    nodes[i].range = &r;
    nodes[i].sector = (uint32_t)sector;
  }
  push_front(i);
  return nodes[i];
}

void sector_cache::load(cached_range &r, size_t sector, uint32_t mask, cache_owner who) {
  bool found;
  node &n = at(r, sector, &found);
  if (mask & ~n.valid) fetch(n, who);
}

void sector_cache::store(cached_range &r, size_t sector, uint32_t mask, cache_owner who) {
  bool found;
  node &n = at(r, sector, &found);
  n.valid |= mask;
  n.dirty = true;
  n.writer = who;
}

void sector_cache::update(cached_range &r, size_t sector, cache_owner who) {
  bool found;
  node &n = at(r, sector, &found);
  if (n.valid != WHOLE) fetch(n, who);
  n.dirty = true;
  n.writer = who;
}

void sector_cache::leave(cached_range &r) {
  for (size_t s = 0; s < r.sectors; s++) {
    const uint32_t i = r.nodes[s];
    if (!i) continue;
    evict(i);
    unused.push_back(i);
  }
}

void sector_cache::empty() {
  while (nodes[0].next) {
    const uint32_t i = nodes[0].next;
    evict(i);
    unused.push_back(i);
  }
}

} // namespace ii_emu
