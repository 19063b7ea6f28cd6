/* Doubly linked circular lists of links that live inside their objects. A list head and a link are the same thing;
 * a link that is in no list points to itself, so that crail_list_remove() may be called twice. */
#ifndef CRAIL_LIST_H
#define CRAIL_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct crail_list {
    struct crail_list *next, *prev;
};

#define CRAIL_LIST_OF(link, type, member) ((type *)(void *)((char *)(link) - offsetof(type, member)))

static inline void crail_list_init(struct crail_list *l) {
    l->next = l->prev = l;
}

static inline bool crail_list_empty(const struct crail_list *l) {
    return l->next == l;
}

static inline void crail_list_remove(struct crail_list *l) {
    l->next->prev = l->prev;
    l->prev->next = l->next;
    crail_list_init(l);
}

/* At the tail of the list; out of whatever list it was in before. */
static inline void crail_list_push(struct crail_list *head, struct crail_list *l) {
    crail_list_remove(l);
    l->next = head;
    l->prev = head->prev;
    head->prev->next = l;
    head->prev = l;
}

/* Moves all of `from` to the tail of `head`, in order. */
static inline void crail_list_splice(struct crail_list *head, struct crail_list *from) {
    if (crail_list_empty(from))
        return;
    from->next->prev = head->prev;
    head->prev->next = from->next;
    from->prev->next = head;
    head->prev = from->prev;
    crail_list_init(from);
}

#endif
