/* The names inside packs, for the files that write and read them. Not for other folders. */
#ifndef II_PACK_FORMAT_H
#define II_PACK_FORMAT_H

#define II_PACK_VERSION    2
#define II_PACK_BLOCK      "block_%05lld"
#define II_PACK_MAX_FILE   (INT64_C(1) << 30) /* bytes of one image */
#define II_PACK_MAX_SHARDS 100000
#define II_PACK_SHARD_NAME "%s-%016llx-%05lld.h5" /* name of the pack, id, number */

#endif
