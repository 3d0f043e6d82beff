/* CRC-32C (Castagnoli, RFC 3720: polynomial 0x1EDC6F41, reflected, inverted at both ends): the
 * checksum of images in packs and skip lists. By processor instruction where there is one, so that
 * checking each image on reading costs nearly nothing. */
#ifndef II_CHECKSUM_H
#define II_CHECKSUM_H
#include <stdint.h>

/* The checksum of what came before (0 at the start) followed by the n bytes. */
uint32_t ii_crc32c(uint32_t before, const void *bytes, int64_t n);

/* The same, without special instructions: for comparison. */
uint32_t ii_crc32c_plain(uint32_t before, const void *bytes, int64_t n);

#endif
