// The state of an agent or a job in one line: the same rules as standing.rs.

import { now } from "./format.js";

const AT = ["active", "error"];

/**
 * @param facts {status, steps, attempt, max, retryAt, waiting, createdAt, updatedAt, doneAt}
 * @param overdueAfter of each step, in milliseconds
 * @returns {state, place, attempt, clock: [kind, ms]}
 */
export function standing(facts, overdueAfter, silentAfter) {
  const index = facts.steps.findIndex((step) => AT.includes(step.status));
  const step = facts.steps[index];
  const began = step?.started_at ? Date.parse(step.started_at) : null;
  const ended = step?.finished_at ? Date.parse(step.finished_at) : null;
  const moving = ["queued", "dispatching", "running"].includes(facts.status);
  const late = began !== null && overdueAfter[index] && now() - began > overdueAfter[index];
  const quiet = now() - Date.parse(facts.updatedAt) > silentAfter;
  let state = facts.status;
  if (state === "queued" && facts.waiting) state = "waiting";
  else if (moving && late) state = "overdue";
  else if (state === "running" && quiet) state = "silent";
  const clocks = {
    succeeded: ["up", Date.parse(facts.doneAt ?? facts.updatedAt)],
    failed: ["up", ended ?? Date.parse(facts.updatedAt)],
    cancelled: ["up", ended ?? Date.parse(facts.updatedAt)],
    retry_scheduled: facts.retryAt
      ? ["down", Date.parse(facts.retryAt)]
      : ["up", ended ?? Date.parse(facts.updatedAt)],
    silent: ["up", Date.parse(facts.updatedAt)],
  };
  return {
    state,
    place: step?.label ?? "",
    attempt: `attempt ${facts.attempt} of ${facts.max}`,
    clock: clocks[state] ?? ["up", began ?? Date.parse(facts.createdAt)],
  };
}

export function ofAgent(answer, overdueAfter, silentAfter) {
  const it = answer.instance;
  const bare = (state, at) => ({ state, place: "", attempt: "", clock: ["up", Date.parse(at)] });
  if (!it) return bare("new", answer.agent.created_at);
  if (["stopping", "stopped", "destroyed"].includes(it.status)) return bare(it.status, it.updated_at);
  return standing({
    status: it.job_status,
    steps: answer.steps,
    attempt: it.attempt,
    max: it.max_attempts,
    retryAt: it.retry_at,
    waiting: it.waiting_because,
    createdAt: it.created_at,
    updatedAt: it.updated_at,
    doneAt: it.running_since,
  }, overdueAfter, silentAfter);
}

/** A node stands where its latest job does. */
export function ofNode(node, silentAfter) {
  if (node.job) return ofJob(node.job, [], silentAfter);
  return { state: "new", place: "", attempt: "", clock: ["up", Date.parse(node.created_at)], node: true };
}

export function ofJob(job, overdueAfter, silentAfter) {
  const last = job.timeline.at(-1);
  const facts = {
    status: job.status,
    steps: last.steps,
    attempt: job.attempt_count,
    max: job.max_attempts,
    retryAt: last.retry_at,
    waiting: job.waiting_because,
    createdAt: job.created_at,
    updatedAt: job.updated_at,
    doneAt: job.finished_at,
  };
  return { ...standing(facts, overdueAfter, silentAfter), node: Boolean(job.node_id) };
}
