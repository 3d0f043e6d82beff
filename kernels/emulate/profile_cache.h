/* The second-level cache of the memory profile: exact LRU over sectors of 32 bytes, that a store
 * allocates without fetching and that are written back when they leave. */
#ifndef II_EMULATE_PROFILE_CACHE_H
#define II_EMULATE_PROFILE_CACHE_H
#include <stddef.h>
#include <stdint.h>
#include <vector>

namespace ii_emu {

/* Counts of whoever touched a sector: record number and place in it. */
struct cache_owner {
  uint32_t record, buffer;
};
/* Told for every sector that is fetched from DRAM or written back to it, 32 bytes each. */
struct cache_listener {
  virtual ~cache_listener() {}
  virtual void fetched(cache_owner who) = 0;
  virtual void written(cache_owner who) = 0;
};

/* The sectors of one allocation: index of a node in the cache, 0 for none. */
struct cached_range {
  uint32_t *nodes;
  size_t sectors;
};

class sector_cache {
public:
  /* bytes: a multiple of 32, at least 32. */
  sector_cache(size_t bytes, cache_listener *to);
  /* A load of the bytes of `mask` in a sector; whole: the cache fetches the sector before the bytes
   * are changed, as atomics do. Partly written sectors are fetched when others of their bytes are
   * wanted, and when they leave (DRAM with error correction knows whole sectors alone). */
  void load(cached_range &r, size_t sector, uint32_t mask, cache_owner who);
  void store(cached_range &r, size_t sector, uint32_t mask, cache_owner who);
  void update(cached_range &r, size_t sector, cache_owner who);
  /* Writes back what is dirty and forgets it: of one allocation, or all. */
  void leave(cached_range &r);
  void empty();

private:
  struct node {
    cached_range *range;
    uint32_t sector, previous, next;
    uint32_t valid; /* bytes that are here */
    bool dirty;
    cache_owner writer; /* the last one */
  };
  node &at(cached_range &r, size_t sector, bool *found);
  void unlink(uint32_t i);
  void push_front(uint32_t i);
  void evict(uint32_t i);
  void fetch(node &n, cache_owner who);

  std::vector<node> nodes; /* 0 is the end of the list on both sides */
  std::vector<uint32_t> unused;
  size_t most;
  cache_listener *listener;
};

} // namespace ii_emu

#endif
