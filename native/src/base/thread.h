/* What a thread of ours asks of the scheduler. */
#ifndef CRAIL_THREAD_H
#define CRAIL_THREAD_H

/* The calling thread does little each time that it wakes, and others wait for it: it asks for short slices of time, so
 * that it begins at once instead of waiting until whoever is at work there has used up his, for as long as it has not
 * had its share of the core; that stays what it was. Linux 6.12 does so (sched_setattr(2): sched_runtime of
 * SCHED_OTHER); older ones go on as before. */
void crail_thread_is_brief(void);

#endif
