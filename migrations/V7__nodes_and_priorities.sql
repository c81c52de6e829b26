-- The queue learns of nodes, of priorities and of claims. Code that knows none of them goes on:
-- its rows have no node, the usual priority, and keep the claim they had.

ALTER TABLE queue ADD COLUMN node_id uuid;
ALTER TABLE queue ADD COLUMN priority smallint NOT NULL DEFAULT 0;
ALTER TABLE queue ADD COLUMN claim bigint;
ALTER TABLE queue ADD CONSTRAINT queue_priority_bounded CHECK (priority BETWEEN -100 AND 100);
ALTER TABLE queue ADD CONSTRAINT queue_has_a_subject CHECK (num_nonnulls(agent_id, node_id) >= 1);

COMMENT ON COLUMN queue.node_id IS 'The node the job changes, where it changes one.';
COMMENT ON COLUMN queue.priority IS 'Claimed first: the highest; among equals, the one that has been due for longest.';
COMMENT ON COLUMN queue.claim IS 'The position of the latest claim: the fencing token of whoever renews its lease.';
COMMENT ON COLUMN queue.due_at IS 'queued: not dispatched before; dispatching: the lease ends; running: a deadline may be over, or the lease of the worker that runs it itself ends; retry: the next attempt begins.';

-- At most one active mutation job for a node, whatever the code does.
CREATE UNIQUE INDEX queue_one_job_a_node ON queue (node_id) WHERE node_id IS NOT NULL;
CREATE INDEX queue_claimable ON queue (priority DESC, due_at) WHERE state = 'queued';
