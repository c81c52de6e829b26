//! Hetzner Cloud, as far as servers go.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Asked, Reply, Service};

/// The token it takes.
pub const TOKEN: &str = "hcloud-hunter2-0123456789";

/// Requests an hour.
const LIMIT: u32 = 3_600;

/// A project.
pub struct Hetzner {
    /// Its servers, by id.
    pub servers: BTreeMap<u64, Value>,
    /// The body of every server that was ever made.
    pub made: Vec<Value>,
    /// How often an action is looked at before it has ended.
    pub looks: u32,
    /// A server whose actions never end.
    pub stuck: Option<u64>,
    /// What the next server's making ends with, if not well: a code and words.
    pub making_fails: Option<(&'static str, &'static str)>,
    /// Whether a name is refused that is taken, as it should be.
    pub names_are_unique: bool,
    actions: BTreeMap<u64, Action>,
    last_id: u64,
    boot: Box<dyn Fn(&str) + Send>,
}

struct Action {
    command: &'static str,
    server: u64,
    looks: u32,
    error: Option<(&'static str, &'static str)>,
}

impl Hetzner {
    /// An empty project. Each machine that starts is given to `boot` with its user-data.
    pub fn new(boot: impl Fn(&str) + Send + 'static) -> Self {
        Self {
            servers: BTreeMap::new(),
            made: Vec::new(),
            looks: 1,
            stuck: None,
            making_fails: None,
            names_are_unique: true,
            actions: BTreeMap::new(),
            last_id: 41,
            boot: Box::new(boot),
        }
    }

    /// A server that is there from before.
    pub fn add(&mut self, name: &str, labels: &Value) -> u64 {
        let id = self.next_id();
        let server = json!({
            "id": id,
            "name": name,
            "status": "running",
            "created": "2026-01-30T23:55:00+00:00",
            "labels": labels,
            "locked": false,
            "protection": {"delete": false, "rebuild": false},
            "server_type": {"id": 22, "name": "cpx11"},
            "image": {"id": 161_547_269, "name": "ubuntu-24.04"},
            "location": {"id": 2, "name": "nbg1"},
            "public_net": {
                "ipv4": {"ip": format!("192.0.2.{}", id % 250), "blocked": false, "dns_ptr": ""},
                "ipv6": {"ip": "2001:db8::/64", "blocked": false, "dns_ptr": []},
                "floating_ips": [],
            },
        });
        self.servers.insert(id, server);
        id
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn create(&mut self, body: &Value) -> Reply {
        let name = body["name"].as_str().unwrap_or_default();
        let is_taken = self.servers.values().any(|server| server["name"] == name);
        if self.names_are_unique && is_taken {
            return refusal(409, "uniqueness_error", "server name is already used");
        }
        self.made.push(body.clone());
        let id = self.add(name, &body["labels"]);
        let error = self.making_fails.take();
        let create = self.begin("create_server", id, error);
        let start = self.begin("start_server", id, None);
        if error.is_none() {
            (self.boot)(body["user_data"].as_str().unwrap_or_default());
        }
        let answer = json!({
            "server": self.servers[&id],
            "action": self.action(create),
            "next_actions": [self.action(start)],
            "root_password": "root-hunter4",
        });
        Reply::new(201, answer)
    }

    fn begin(
        &mut self,
        command: &'static str,
        server: u64,
        error: Option<(&'static str, &'static str)>,
    ) -> u64 {
        let id = self.next_id();
        let looks = if self.stuck == Some(server) { u32::MAX } else { self.looks };
        self.actions.insert(id, Action { command, server, looks, error });
        id
    }

    fn action(&self, id: u64) -> Value {
        let action = &self.actions[&id];
        let (status, error) = match (action.looks, action.error) {
            (1.., _) => ("running", Value::Null),
            (0, None) => ("success", Value::Null),
            (0, Some((code, message))) => ("error", json!({"code": code, "message": message})),
        };
        json!({
            "id": id,
            "command": action.command,
            "status": status,
            "progress": if action.looks == 0 { 100 } else { 50 },
            "started": "2026-01-30T23:55:00+00:00",
            "finished": null,
            "resources": [{"id": action.server, "type": "server"}],
            "error": error,
        })
    }

    fn look(&mut self, id: u64) -> Option<Value> {
        let action = self.actions.get_mut(&id)?;
        action.looks = action.looks.saturating_sub(1);
        Some(self.action(id))
    }

    fn list(&self, asked: &Asked) -> Reply {
        let name = asked.query.get("name");
        let selector = asked.query.get("label_selector");
        let fits = |server: &&Value| {
            name.is_none_or(|name| server["name"] == name.as_str())
                && selector.is_none_or(|selector| {
                    selector.split(',').all(|pair| {
                        let (label, value) = pair.split_once('=').unwrap();
                        server["labels"][label] == value
                    })
                })
        };
        page("servers", self.servers.values().filter(fits).cloned().collect(), asked)
    }
}

impl Service for Hetzner {
    const FACTS: &'static str = include_str!("hetzner.json");

    fn answer(&mut self, asked: &Asked) -> Reply {
        if asked.authorization != format!("Bearer {TOKEN}") {
            return refusal(401, "unauthorized", "unable to authenticate");
        }
        let id = asked.ids.first().and_then(|id| id.parse::<u64>().ok()).unwrap_or_default();
        let missing = || refusal(404, "not_found", "server not found");
        let reply = match asked.kind.as_str() {
            "GET /servers" => self.list(asked),
            "POST /servers" => self.create(&asked.body),
            "GET /servers/{id}" => match self.servers.get(&id) {
                Some(server) => Reply::new(200, json!({"server": server})),
                None => missing(),
            },
            "DELETE /servers/{id}" => match self.servers.remove(&id) {
                Some(_) => {
                    let action = self.begin("delete_server", id, None);
                    Reply::new(200, json!({"action": self.action(action)}))
                }
                None => missing(),
            },
            "GET /servers/{id}/actions" => {
                let its = self.actions.iter().filter(|(_, action)| action.server == id);
                let actions = its.map(|(id, _)| self.action(*id)).collect();
                page("actions", actions, asked)
            }
            "GET /actions/{id}" => match self.look(id) {
                Some(action) => Reply::new(200, json!({"action": action})),
                None => missing(),
            },
            _ => missing(),
        };
        reply.header("ratelimit-limit", LIMIT).header("ratelimit-remaining", LIMIT - 1)
    }
}

/// A refusal in Hetzner's form.
pub fn refusal(status: u16, code: &str, message: &str) -> Reply {
    Reply::new(status, json!({"error": {"code": code, "message": message, "details": null}}))
}

fn page(name: &str, all: Vec<Value>, asked: &Asked) -> Reply {
    let number = |name: &str, default: usize| {
        asked.query.get(name).map_or(default, |text| text.parse().unwrap())
    };
    let (page, size) = (number("page", 1), number("per_page", 25).min(50));
    let total = all.len();
    let last = total.div_ceil(size).max(1);
    let entries: Vec<_> = all.into_iter().skip((page - 1) * size).take(size).collect();
    let pagination = json!({
        "page": page,
        "per_page": size,
        "previous_page": (page > 1).then(|| page - 1),
        "next_page": (page < last).then_some(page + 1),
        "last_page": last,
        "total_entries": total,
    });
    Reply::new(200, json!({name: entries, "meta": {"pagination": pagination}}))
}
