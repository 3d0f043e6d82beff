/* Shards in the memory of the machine, one copy for all its processes. Not for other folders.
 *
 * The copy is the file /dev/shm/ii-pack-<user>-<device>-<inode>-<bytes>-<time>, named by what it is
 * a copy of. The first process to come copies, under an exclusive lock, while the others wait;
 * everyone then holds a shared lock as long as it uses the copy. Whoever closes it and gets the
 * exclusive lock back was the last and removes it. Copies that nobody holds (their processes were
 * killed) are removed by the next process that makes one. */
#ifndef II_PACK_CACHE_H
#define II_PACK_CACHE_H
#include "data/dataset_build.h"

/* Fills memory and memory_fd. Errors: II_ERR_MEMORY (no room in /dev/shm, says how much is needed),
 * II_ERR_IO. */
ii_status ii_pack_cache_open(ii_shard *shard, ii_error *err);

/* Gives the copy back; nothing for a shard that has none. */
void ii_pack_cache_close(ii_shard *shard);

#endif
