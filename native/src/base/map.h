/* Files mapped shared, from their first byte on: regions, generations, use tables. */
#ifndef CRAIL_MAP_H
#define CRAIL_MAP_H

#include <stddef.h>

#define CRAIL_HUGE_PAGE (2u << 20)

/* Maps `bytes` of the file, which must have them: what lies beyond its end would be a SIGBUS. What is large begins at
 * a multiple of CRAIL_HUGE_PAGE, so that the file's huge pages are mapped as such. 0 or -errno; -EINVAL: too short. */
int crail_map_file(int fd, size_t bytes, int prot, void **out);

/* Gives the memory of an empty file huge pages, also where its mount gives none by itself (`huge=never` is usual): a
 * page of each is allocated, and the kernel (Linux 6.1) collapses what is around it. `memory` is the whole file,
 * mapped for writing by crail_map_file(). Tries; what stays small, or is not there yet, is the caller's. */
void crail_map_collapse(int fd, void *memory, size_t bytes);

#endif
