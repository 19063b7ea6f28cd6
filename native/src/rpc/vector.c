/* The operations of one request. A vector is executed in slices: now and then it looks at the clock, and when the
 * time of the turn is over it stops between two operations and goes on later. Each operation is atomic, a vector is
 * not. */
#include <assert.h>
#include <errno.h>

#include "base/clock.h"
#include "rpc/rpc.h"

#define UNDONE_WAIT_NS_MAX 2000000000u

static const struct crail_frame *head_of(const struct crail_rpc_vector *v) {
    return (const void *)v->frame;
}

static uint32_t bytes_of(const struct crail_op *op) {
    return crail_pad8((uint32_t)sizeof *op + op->path_len + op->options_len + op->data_len);
}

/* ---- results that need no tree ------------------------------------------- */

static int answer_with(struct crail_buf *b, const struct crail_result *r, const void *data) {
    int rc = crail_buf_reserve(b, sizeof *r + crail_pad8(r->data_len));
    if (rc)
        return rc;
    crail_buf_append_padded(b, r, sizeof *r);
    if (data)
        crail_buf_append_padded(b, data, r->data_len);
    return 0;
}

static int answer(struct crail_buf *b, int status, const void *data, uint32_t n) {
    return answer_with(b, &(struct crail_result){.status = -status, .data_len = n, .size = n}, data);
}

static int begin_reply(struct crail_buf *b, const struct crail_frame *asked) {
    struct crail_frame head = {.magic = CRAIL_FRAME_MAGIC, .count = asked->count, .id = asked->id, .seq = asked->seq};
    b->len = 0;
    /* Room for a bare result of each: what fails for want of memory later can still say so. */
    int rc = crail_buf_reserve(b, sizeof head + asked->count * sizeof(struct crail_result));
    return rc ? rc : crail_buf_append_padded(b, &head, sizeof head);
}

static void end_reply(struct crail_buf *b) {
    ((struct crail_frame *)(void *)b->data)->size = (uint32_t)b->len;
}

int crail_rpc_vector_refuse(const uint8_t *frame, int status, struct crail_buf *reply) {
    const struct crail_frame *head = (const void *)frame;
    int rc = begin_reply(reply, head);
    for (uint32_t i = 0; !rc && i < head->count; i++)
        rc = answer(reply, status, NULL, 0);
    if (!rc)
        end_reply(reply);
    return rc;
}

/* ---- one operation ------------------------------------------------------- */

static int describe_server(crail_namenode *nn, uint64_t number, struct crail_buf *b) {
    const struct crail_rpc_server *s = crail_rpc_server_find(nn, number);
    return s ? answer(b, 0, s->description, s->description_size) : answer(b, CRAIL_E_NOT_FOUND, NULL, 0);
}

static void count(crail_namenode *nn, const struct crail_op *op) {
    nn->stats.operations++;
    nn->stats.gets += op->code == CRAIL_OP_GET;
    nn->stats.puts += op->code == CRAIL_OP_PUT;
    nn->stats.commits += op->code == CRAIL_OP_COMMIT;
    nn->stats.allocs += op->code == CRAIL_OP_ALLOC;
    nn->changed |= op->code >= CRAIL_OP_RECORDED_FIRST;
}

int crail_rpc_operation(crail_namenode *nn, struct crail_rpc_session *s, const struct crail_op *op,
                        struct crail_buf *reply) {
    const char *path = (const char *)(op + 1);
    const char *options = path + op->path_len;
    int rc;
    switch (op->code) {
    case CRAIL_OP_SERVER:
        return describe_server(nn, op->arg0, reply);
    case CRAIL_OP_WATCH:
        return crail_rpc_watch_begin(nn, s, op, path, reply);
    case CRAIL_OP_NEXT:
        return crail_rpc_watch_next(nn, s, op, reply);
    case CRAIL_OP_END:
        rc = crail_rpc_watch_end(nn, s, op, reply);
        if (rc <= 0)
            return rc;
        break;
    }
    return crail_meta_execute(nn->meta, s->meta, op, path, options, options + op->options_len, nn->realtime_ns, reply);
}

/* As crail_rpc_operation(), for all operations. */
static int execute(crail_namenode *nn, struct crail_rpc_lane *lane, const struct crail_op *op) {
    struct crail_rpc_vector *v = &lane->vec;
    bool mutates = op->code >= CRAIL_OP_RECORDED_FIRST && op->code < CRAIL_OP_HOLDS_FIRST;
    if (v->bye)
        return answer(v->reply, CRAIL_E_SESSION_LOST, NULL, 0);
    if (mutates && !v->recorded)
        return answer(v->reply, CRAIL_E_PROTOCOL, NULL, 0);
    if (!mutates && v->reply->len > CRAIL_RPC_REPLY_BYTES_MAX)
        return -ENOMEM;
    switch (op->code) {
    case CRAIL_OP_PING:
        return answer_with(v->reply, &(struct crail_result){.version = lane->last_seq}, NULL);
    case CRAIL_OP_CANCEL: {
        bool found = crail_rpc_wait_cancel(nn, lane->conn, op->arg0);
        return answer_with(v->reply, &(struct crail_result){.size = found}, NULL);
    }
    case CRAIL_OP_BYE:
        v->bye = true;
        return answer(v->reply, 0, NULL, 0);
    }
    int status = crail_rpc_wait_allowed(op, v->count == 1 && !v->recorded);
    if (!status)
        status = crail_rpc_durable_allowed(nn, op);
    if (status)
        return answer(v->reply, status, NULL, 0);
    return crail_rpc_operation(nn, lane->session, op, v->reply);
}

/* For memory that is on its way back; a little longer for what is undone, but not so long that who asks comes not to
 * give back what it holds ahead. */
static uint64_t wait_ns(const crail_namenode *nn) {
    int64_t at = crail_meta_undone_until(nn->meta);
    if (!at)
        return nn->tuning.space_wait_ns;
    uint64_t left = at > nn->realtime_ns ? (uint64_t)(at - nn->realtime_ns) : 0;
    return (left < UNDONE_WAIT_NS_MAX ? left : UNDONE_WAIT_NS_MAX) + nn->tuning.space_wait_ns;
}

/* Until when a lone ALLOC waits: as long as it said, or a little while some memory is on its way back. */
static void space_wait_begin(crail_namenode *nn, struct crail_rpc_vector *v, const struct crail_op *op) {
    if (op->flags & CRAIL_OPF_WAIT) {
        v->space_until = nn->now_ns + op->count * 1000000ull;
        return;
    }
    v->space_until = nn->now_ns + wait_ns(nn);
    v->space_epoch = crail_meta_gated(nn->meta) ? crail_rpc_durable_changed(nn) : 0;
}

/* A commit that takes long slows whoever needs what it frees, and fails nobody. */
static bool space_wait_is_over(crail_namenode *nn, struct crail_rpc_vector *v) {
    bool committed = v->space_epoch && v->space_epoch <= nn->durable.done;
    if (committed) /* what it freed is on its way back from now on */
        v->space_epoch = 0;
    if (committed || (v->space_epoch && v->space_until <= nn->now_ns))
        v->space_until = nn->now_ns + nn->tuning.space_wait_ns;
    return v->space_until <= nn->now_ns;
}

/* A lone ALLOC that found no memory takes its result away again and waits, which lets a small store be overwritten for
 * ever; also for a server that was there a moment ago, and may just be restarted. */
static bool waits_for_space(crail_namenode *nn, struct crail_rpc_vector *v, const struct crail_op *op,
                            size_t result_at) {
    const struct crail_result *r = (const void *)(v->reply->data + result_at);
    if (op->code != CRAIL_OP_ALLOC || v->count != 1 || op->flags & CRAIL_OPF_IF_PLENTY ||
        r->status != -CRAIL_E_OUT_OF_SPACE)
        return false;
    bool said = op->flags & CRAIL_OPF_WAIT;
    uint64_t awaited_ns = crail_rpc_servers_awaited(nn);
    if (!said && !awaited_ns && !crail_meta_undone_until(nn->meta) && !crail_rpc_retires_coming(nn))
        return false;
    if (!v->space_until)
        space_wait_begin(nn, v, op);
    if (!said && awaited_ns > v->space_until)
        v->space_until = awaited_ns;
    if (space_wait_is_over(nn, v))
        return false;
    v->reply->len = result_at;
    nn->changed = true; /* orders go out now, not when they are many */
    return true;
}

/* ---- the vector ---------------------------------------------------------- */

int crail_rpc_vector_begin(struct crail_rpc_vector *v, const uint8_t *frame, struct crail_buf *reply) {
    const struct crail_frame *head = (const void *)frame;
    assert(!v->frame);
    int rc = begin_reply(reply, head);
    if (rc)
        return rc;
    *v = (struct crail_rpc_vector){
        .frame = frame,
        .count = head->count,
        .offset = sizeof *head,
        .ahead_offset = sizeof *head,
        .recorded = head->seq != 0,
        .reply = reply,
    };
    return 0;
}

static const struct crail_op *next_op(const struct crail_rpc_vector *v) {
    return (const void *)(v->frame + v->offset);
}

void crail_rpc_vector_resume(struct crail_rpc_vector *v, const uint8_t *frame, uint32_t done, struct crail_buf *reply) {
    struct crail_frame *begun = (void *)reply->data;
    const struct crail_frame *head = (const void *)frame;
    assert(!v->frame && begun->count == head->count && done < head->count);
    begun->id = head->id;
    begun->seq = head->seq;
    *v = (struct crail_rpc_vector){
        .frame = frame, .count = head->count, .offset = sizeof *head, .recorded = true, .reply = reply};
    for (; v->next < done; v->next++)
        v->offset += bytes_of(next_op(v));
    v->ahead = v->next;
    v->ahead_offset = v->offset;
}

bool crail_rpc_vector_is_bye(const struct crail_rpc_vector *v) {
    return v->count == 1 && next_op(v)->code == CRAIL_OP_BYE;
}

static void prefetch(crail_namenode *nn, struct crail_rpc_vector *v) {
    uint32_t until = v->next + CRAIL_META_AHEAD < v->count ? v->next + CRAIL_META_AHEAD : v->count;
    for (; v->ahead < until; v->ahead++) {
        const struct crail_op *op = (const void *)(v->frame + v->ahead_offset);
        crail_meta_prefetch(nn->meta, op, (const char *)(op + 1));
        v->ahead_offset += bytes_of(op);
    }
}

enum crail_rpc_run crail_rpc_vector_run(crail_namenode *nn, struct crail_rpc_lane *lane) {
    struct crail_rpc_vector *v = &lane->vec;
    assert(v->frame && v->next < v->count);
    if (v->recorded)
        crail_rpc_lane_touch(nn, lane);
    for (;;) {
        const struct crail_op *op = next_op(v);
        size_t at = v->reply->len;
        if (v->count > 1)
            prefetch(nn, v);
        int rc = execute(nn, lane, op);
        if (rc == CRAIL_META_AGAIN)
            return CRAIL_RPC_RUN_STEP;
        if (rc == CRAIL_META_WAIT) {
            int status = crail_rpc_wait_begin(nn, lane->conn, head_of(v)->id, op);
            if (!status)
                return CRAIL_RPC_RUN_ASIDE;
            rc = answer(v->reply, status, NULL, 0);
        } else if (rc) {
            rc = answer(v->reply, CRAIL_E_NO_MEMORY, NULL, 0);
        }
        if (rc)
            return CRAIL_RPC_RUN_BROKEN;
        assert(v->reply->len >= at + sizeof(struct crail_result) && v->reply->len % 8 == 0);
        if (waits_for_space(nn, v, op, at))
            return CRAIL_RPC_RUN_SPACE;
        count(nn, op);
        uint64_t needs = crail_rpc_durable_needs(nn, op, (const void *)(v->reply->data + at));
        v->needs = needs > v->needs ? needs : v->needs;
        uint64_t moved = bytes_of(op) + (v->reply->len - at);
        v->offset += bytes_of(op);
        v->next++;
        if (v->next == v->count)
            break;
        if (crail_rpc_time_over(nn, moved))
            return CRAIL_RPC_RUN_SLICED;
    }
    assert(v->offset == head_of(v)->size);
    end_reply(v->reply);
    return CRAIL_RPC_RUN_DONE;
}
