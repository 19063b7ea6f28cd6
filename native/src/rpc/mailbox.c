/* Calls from other threads, executed by the loop. The caller waits on a condition until its mail is done: the loop
 * never holds a turn longer than a fraction of a millisecond, so this is a short wait. */
#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "rpc/rpc.h"

int crail_rpc_mailbox_init(struct crail_rpc_mailbox *box) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    pthread_mutex_init(&box->lock, NULL);
    pthread_cond_init(&box->done, NULL);
    box->end.kind = CRAIL_RPC_MAILBOX;
    box->end.fd = fd;
    crail_list_init(&box->end.grave);
    box->head = NULL;
    box->tail = &box->head;
    box->ended = false;
    return 0;
}

void crail_rpc_mailbox_destroy(struct crail_rpc_mailbox *box) {
    assert(!box->head);
    close(box->end.fd);
    pthread_cond_destroy(&box->done);
    pthread_mutex_destroy(&box->lock);
}

int crail_rpc_post(crail_namenode *nn, int (*call)(crail_namenode *nn, void *args), void *args) {
    struct crail_rpc_mailbox *box = &nn->mailbox;
    struct crail_rpc_mail mail = {.call = call, .args = args};
    pthread_mutex_lock(&box->lock);
    if (box->ended) {
        mail.rc = call(nn, args);
    } else {
        *box->tail = &mail;
        box->tail = &mail.next;
        /* Cannot fail: the counter is far from its limit, and a second wake-up is harmless. */
        eventfd_write(box->end.fd, 1);
        while (!mail.done)
            pthread_cond_wait(&box->done, &box->lock);
    }
    pthread_mutex_unlock(&box->lock);
    return mail.rc;
}

/* Takes the whole queue, executes it without the lock, and tells the callers. With `ending` the lock stays held
 * from the moment the queue was seen empty until `ended` is set, so that no mail falls between. */
static void serve(crail_namenode *nn, bool ending) {
    struct crail_rpc_mailbox *box = &nn->mailbox;
    pthread_mutex_lock(&box->lock);
    do {
        struct crail_rpc_mail *queue = box->head;
        box->head = NULL;
        box->tail = &box->head;
        pthread_mutex_unlock(&box->lock);
        for (struct crail_rpc_mail *m = queue; m; m = m->next)
            m->rc = m->call(nn, m->args);
        pthread_mutex_lock(&box->lock);
        for (struct crail_rpc_mail *m = queue, *next; m; m = next) {
            next = m->next; /* m belongs to its caller again once it is done */
            m->done = true;
        }
        if (queue)
            pthread_cond_broadcast(&box->done);
    } while (ending && box->head);
    box->ended = ending;
    pthread_mutex_unlock(&box->lock);
}

void crail_rpc_mailbox_serve(crail_namenode *nn) {
    eventfd_t ignored;
    eventfd_read(nn->mailbox.end.fd, &ignored);
    serve(nn, false);
}

void crail_rpc_mailbox_end(crail_namenode *nn) {
    serve(nn, true);
}
