/* What the loop has to tell: a bounded ring and an eventfd that is readable while something is in it. The lock is
 * held for copying only. */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "rpc/rpc.h"

int crail_rpc_events_init(struct crail_rpc_events *e) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    pthread_mutex_init(&e->lock, NULL);
    e->fd = fd;
    e->first = e->count = 0;
    e->dropped = 0;
    return 0;
}

void crail_rpc_events_destroy(struct crail_rpc_events *e) {
    close(e->fd);
    pthread_mutex_destroy(&e->lock);
}

void crail_rpc_events_post(struct crail_rpc_events *e, uint32_t kind, uint32_t server, uint64_t session) {
    pthread_mutex_lock(&e->lock);
    if (e->count == CRAIL_RPC_EVENTS_MAX) {
        e->dropped++;
    } else {
        e->ring[(e->first + e->count++) % CRAIL_RPC_EVENTS_MAX] =
            (crail_namenode_event){.kind = kind, .server = server, .session = session};
        eventfd_write(e->fd, 1);
    }
    pthread_mutex_unlock(&e->lock);
}

uint32_t crail_rpc_events_take(struct crail_rpc_events *e, crail_namenode_event *out, uint32_t max) {
    uint32_t n = 0;
    pthread_mutex_lock(&e->lock);
    for (; n < max && e->count; n++) {
        out[n] = e->ring[e->first];
        e->first = (e->first + 1) % CRAIL_RPC_EVENTS_MAX;
        e->count--;
    }
    eventfd_t ignored;
    if (!e->count)
        eventfd_read(e->fd, &ignored);
    pthread_mutex_unlock(&e->lock);
    return n;
}
