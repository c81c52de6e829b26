-- The queue: one row for each job that has not ended, written in the same statement as the
-- events that change it. What a row means is in the log; the row says when to look at it next.

CREATE TABLE queue (
    job_id uuid NOT NULL,
    job_type text NOT NULL,
    agent_id uuid,
    state text NOT NULL,
    due_at timestamptz NOT NULL,
    CONSTRAINT queue_pkey PRIMARY KEY (job_id),
    CONSTRAINT queue_state_known CHECK (state IN ('queued', 'dispatching', 'running', 'retry'))
);

COMMENT ON TABLE queue IS 'Jobs that have not ended, and when each is to be looked at next.';
COMMENT ON COLUMN queue.due_at IS 'queued: not dispatched before; dispatching: the lease ends; running: a deadline may be over; retry: the next attempt begins.';

-- At most one active mutation job for an agent, whatever the code does.
CREATE UNIQUE INDEX queue_one_job_an_agent ON queue (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX queue_due ON queue (due_at);
