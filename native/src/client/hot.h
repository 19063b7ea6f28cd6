/* The seam between the two doors: the hot door (native/python/) is a shared object of its own and calls the core
 * that lives in crailpy._native through this table. */
#ifndef CRAIL_HOT_H
#define CRAIL_HOT_H

#include "client.h"
#include "flow.h"

#define CRAIL_HOT_FUNCTIONS(X) \
    X(lane_checkout)           \
    X(lane_checkin)            \
    X(lane_discard)            \
    X(lane_wait)               \
    X(lane_begin)              \
    X(lane_op)                 \
    X(lane_ops)                \
    X(lane_send)               \
    X(lane_send_again)         \
    X(lane_receive)            \
    X(lane_result)             \
    X(lane_grant_take)         \
    X(lane_grant_keep)         \
    X(lane_grant_room)         \
    X(lane_grants_drop)        \
    X(io_ask)                  \
    X(io_run)                  \
    X(io_restart)              \
    X(io_end)                  \
    X(io_flush)                \
    X(lane_data_drop)          \
    X(pin_take)                \
    X(pin_release)             \
    X(client_ref)              \
    X(client_unref)            \
    X(client_find)             \
    X(lane_has_data)           \
    X(now_ns)                  \
    X(flow_init)               \
    X(flow_free)               \
    X(flow_op)                 \
    X(flow_attach)             \
    X(flow_detach)             \
    X(flow_flush)              \
    X(flow_receive)            \
    X(flow_reply)              \
    X(flow_next)               \
    X(flow_find)               \
    X(flow_remove)             \
    X(flow_frame_free)         \
    X(flow_silent_since)       \
    X(pipe_open)               \
    X(pipe_close)              \
    X(pipe_is_ours)            \
    X(pipe_reaches)            \
    X(pipe_take)               \
    X(pipe_put_back)           \
    X(pipe_abort)              \
    X(pipe_write)              \
    X(pipe_settle)             \
    X(pipe_arrived)            \
    X(pipe_read)               \
    X(pipe_ask)                \
    X(pipe_is_astray)          \
    X(range_locate)

struct crail_hot_table {
    uint32_t size; /* of this struct: both sides must agree */
    uint32_t api_version;
    const unsigned *fork_child_epoch;
#define CRAIL_HOT_MEMBER(name) __typeof__(crail_##name) *name;
    CRAIL_HOT_FUNCTIONS(CRAIL_HOT_MEMBER)
#undef CRAIL_HOT_MEMBER
};

#endif
