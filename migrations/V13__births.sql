-- Lists as they were at a position: what had been made by then, and which jobs had succeeded.
-- Made for 1 AgentCreated, 10 JobQueued, 17 JobSucceeded and 50 NodeRegistered only, of which a
-- job has two at the most: callbacks of a run are not indexed, so appending them costs nothing more.
-- The position is in the index, so that what was made later is passed over without its row.

CREATE INDEX event_births ON event (type, stream_id, position) WHERE type IN (1, 10, 17, 50);

COMMENT ON INDEX event_births IS 'What was made, newest id first, up to a position.';
