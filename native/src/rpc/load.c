/* What an earlier life left: rows come in pieces, and are checked one by one; the engine makes its own of them,
 * sessions and servers come back through its listener, lanes last. Nobody is connected yet, so the loop may take its
 * time. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/rows.h"
#include "rpc/rpc.h"

#define LANE_KEY_BYTES 12

struct rows {
    const uint8_t *bytes;
    uint64_t size;
    char *why;
    uint32_t why_size;
    crail_namenode_loaded *loaded;
};

/* ---- rows -------------------------------------------------------------------- */

static int damaged(const struct rows *rows, const char *what, uint64_t at) {
    snprintf(rows->why, rows->why_size, "%s, byte %llu of the rows given", what, (unsigned long long)at);
    return -EUCLEAN;
}

static int load_super(crail_namenode *nn, const struct crail_row *row) {
    struct crail_row_bounds bounds;
    if (row->key_len != 6 || memcmp(crail_row_key(row), "bounds", 6))
        return 0; /* Python's */
    if (row->value_len != sizeof bounds)
        return -EUCLEAN;
    memcpy(&bounds, crail_row_value(row), sizeof bounds);
    nn->durable.has_bounds = true;
    crail_meta_counters_set(nn->meta, &(struct crail_meta_counters){bounds.id, bounds.version, bounds.job});
    return 0;
}

static int load_row(crail_namenode *nn, const struct rows *rows, const struct crail_row *row, uint64_t at) {
    if (row->gone)
        return damaged(rows, "a row that is gone", at);
    if (row->table == CRAIL_TABLE_LANE) {
        /* Their sessions come with the end. */
        return crail_buf_append_padded(&nn->durable.rows, row, row->size);
    }
    if (row->table == CRAIL_TABLE_SUPER)
        return load_super(nn, row) ? damaged(rows, "the row of the bounds is damaged", at) : 0;
    int rc = crail_meta_load(nn->meta, row, rows->why, rows->why_size);
    return rc == -EINVAL ? damaged(rows, "a row of an unknown table", at) : rc;
}

/* ---- servers and sessions ------------------------------------------------------ */

static int load_server(void *ctx, uint32_t number, uint32_t state, const uint32_t *granules, uint32_t regions,
                       struct crail_meta_place place, const void *note, uint32_t note_bytes) {
    (void)place;
    return crail_rpc_server_loaded(ctx, number, state, granules, regions, note, note_bytes);
}

static int load_session(void *ctx, uint64_t id, struct crail_meta_session *s) {
    return crail_rpc_session_loaded(ctx, id, s);
}

static int begin(crail_namenode *nn) {
    if (nn->durable.is_loading)
        return 0;
    nn->durable.is_loading = true;
    return crail_meta_load_begin(nn->meta, (struct crail_meta_load_listener){nn, load_server, load_session});
}

static int load(crail_namenode *nn, void *args) {
    const struct rows *rows = args;
    uint64_t from = crail_clock_ns();
    int rc = begin(nn);
    for (uint64_t at = 0; !rc && at < rows->size;) {
        const struct crail_row *row;
        rc = crail_row_check(rows->bytes + at, rows->size - at, &row);
        rc = rc ? damaged(rows, "a row whose checksum is wrong", at) : load_row(nn, rows, row, at);
        if (!rc)
            at += row->size;
    }
    crail_failpoint("load-rows");
    nn->excused_ns += crail_clock_ns() - from;
    return rc;
}

/* ---- lanes --------------------------------------------------------------------- */

/* The head and the results of a reply, or of its beginning, as far as it is to be trusted: its crc was right. */
static bool is_reply(const uint8_t *record, size_t n, uint32_t results) {
    const struct crail_frame *head = (const void *)record;
    if (n < sizeof *head || head->count > CRAIL_VECTOR_OPS_MAX || results > head->count)
        return false;
    size_t at = sizeof *head;
    for (uint32_t i = 0; i < results; i++) {
        const struct crail_result *r = (const void *)(record + at);
        if (n - at < sizeof *r || n - at < sizeof *r + (((uint64_t)r->data_len + 7) & ~7ull))
            return false;
        at += sizeof *r + crail_pad8(r->data_len);
    }
    return at == n;
}

/* 1: there is no such session, or the row is none of ours. */
static int load_lane(crail_namenode *nn, const struct crail_row *row) {
    struct crail_row_lane value;
    uint64_t session;
    uint32_t number;
    if (row->key_len != LANE_KEY_BYTES || row->value_len < sizeof value)
        return 1;
    memcpy(&session, crail_row_key(row), sizeof session);
    memcpy(&number, crail_row_key(row) + sizeof session, sizeof number);
    memcpy(&value, crail_row_value(row), sizeof value);
    struct crail_rpc_lane *lane;
    int rc = crail_rpc_lane_loaded(nn, session, number, &lane);
    if (rc)
        return rc;
    size_t n = row->value_len - sizeof value;
    rc = crail_buf_append_padded(&lane->record, crail_row_value(row) + sizeof value, n);
    if (rc)
        return rc;
    lane->last_seq = value.last_seq;
    lane->half_seq = value.half_seq;
    lane->half_count = value.half_count;
    const struct crail_frame *head = (const void *)lane->record.data;
    if (n && !is_reply(lane->record.data, n, value.half_seq ? value.half_count : head->count))
        return 1;
    return 0;
}

static int load_lanes(crail_namenode *nn, crail_namenode_loaded *loaded) {
    struct crail_buf *b = &nn->durable.rows;
    for (size_t at = 0; at < b->len;) {
        const struct crail_row *row = (const void *)(b->data + at);
        int rc = load_lane(nn, row);
        if (rc < 0)
            return rc;
        if (rc == 1) {
            /* The session ended; or its row is damaged, and then the row goes all the same. */
            rc = crail_row_append(&nn->durable.gone, CRAIL_TABLE_LANE, true, crail_row_key(row), row->key_len, NULL, 0);
            loaded->lanes_dropped++;
        } else {
            loaded->lanes++;
        }
        if (rc < 0)
            return rc;
        at += row->size;
    }
    crail_buf_free(b);
    return 0;
}

static int load_end(crail_namenode *nn, void *args) {
    struct rows *rows = args;
    struct crail_load_report report = {0};
    uint64_t from = crail_clock_ns();
    int rc = begin(nn);
    if (!rc)
        rc = crail_meta_load_end(nn->meta, &report, rows->why, rows->why_size);
    crail_failpoint("load-linked");
    if (!rc && report.nodes && !nn->durable.has_bounds) { /* numbers would be given twice */
        snprintf(rows->why, rows->why_size, "super 'bounds': the row is missing");
        rc = -EUCLEAN;
    }
    if (!rc)
        rc = load_lanes(nn, rows->loaded);
    rows->loaded->nodes = report.nodes;
    rows->loaded->sessions = report.sessions;
    rows->loaded->servers = report.servers;
    rows->loaded->grants = report.grants;
    rows->loaded->orphans = report.orphans;
    rows->loaded->ownerless = report.ownerless;
    if (!rc && (report.nodes || report.grants)) /* those whose end that is may not have found back yet */
        crail_meta_ends_after(nn->meta, crail_clock_realtime_ns() + (int64_t)nn->grace_ns[0]);
    for (uint32_t i = 0; i < nn->servers_count; i++)
        nn->servers[i]->away_until_ns = crail_clock_ns() + nn->grace_ns[0];
    nn->background = true; /* orphans go */
    nn->excused_ns += crail_clock_ns() - from;
    return rc;
}

/* ---- the door -------------------------------------------------------------------- */

int crail_namenode_load(crail_namenode *nn, const void *data, uint64_t size, char *why, uint32_t why_size) {
    struct rows rows = {.bytes = data, .size = size, .why = why, .why_size = why_size};
    if ((size && !data) || (uintptr_t)data % 8 || !why || !why_size || nn->durable.kind == CRAIL_DURABILITY_NONE)
        return -CRAIL_E_INVALID_ARGUMENT;
    return crail_rpc_post(nn, load, &rows);
}

int crail_namenode_load_end(crail_namenode *nn, crail_namenode_loaded *out, char *why, uint32_t why_size) {
    crail_namenode_loaded loaded = {0};
    struct rows rows = {.why = why, .why_size = why_size, .loaded = &loaded};
    if (!out || !why || !why_size || nn->durable.kind == CRAIL_DURABILITY_NONE)
        return -CRAIL_E_INVALID_ARGUMENT;
    int rc = crail_rpc_post(nn, load_end, &rows);
    if (!rc)
        *out = loaded;
    return rc;
}
