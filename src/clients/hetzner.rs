//! Hetzner Cloud: servers and the actions that change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::error::found;
use super::{Body, Call, ClientError, Patience, Sensitive, Service, Time, Trouble};

/// Where the API is.
pub const HCLOUD_ENDPOINT: &str = "https://api.hetzner.cloud/v1";

/// The largest user-data Hetzner takes, in bytes.
pub const USER_DATA_BYTES_MAX: usize = 32 * 1024;

/// Entries asked for at once: the most Hetzner gives.
pub const PAGE_ENTRIES: usize = 50;

/// Pages of one list: more servers than a project may have by far.
pub const PAGES_MAX: u32 = 100;

/// The code of a name that is taken.
pub const UNIQUENESS_ERROR: &str = "uniqueness_error";

/// A client of one project.
#[derive(Debug)]
pub struct Hetzner {
    service: Service,
    token: Sensitive,
}

/// A server to be made.
#[derive(Clone, Debug, Serialize)]
pub struct NewServer {
    /// Its name: unique in the project, a host name (RFC 1123).
    pub name: String,
    /// The name of its type.
    pub server_type: String,
    /// The name of its image.
    pub image: String,
    /// The name of its location. Never a `datacenter`: that field is going away.
    pub location: String,
    /// Names or ids of the SSH keys that may enter.
    pub ssh_keys: Vec<String>,
    /// What cloud-init does at its first start, at most [`USER_DATA_BYTES_MAX`].
    pub user_data: Sensitive,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The firewalls before it.
    pub firewalls: Vec<Firewall>,
    /// Whether it is switched on.
    pub start_after_create: bool,
}

/// A firewall, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Its id.
    pub firewall: u64,
}

/// A server.
#[derive(Clone, Debug, Deserialize)]
pub struct Server {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// `running`, `initializing`, `starting`, `off`, `deleting` …
    pub status: String,
    /// When it was made.
    pub created: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its type.
    pub server_type: Named,
    /// Where it stands.
    pub location: Option<Named>,
    public_net: PublicNet,
}

/// Something that has a name.
#[derive(Clone, Debug, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct PublicNet {
    ipv4: Option<Address>,
    ipv6: Option<Address>,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    ip: String,
}

impl Server {
    /// Its public address: the IPv4 one; the first of its IPv6 network where it has no other.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        let v4 = self.public_net.ipv4.as_ref().and_then(|address| address.ip.parse().ok());
        let v6 = self.public_net.ipv6.as_ref().and_then(|network| {
            let (first, _) = network.ip.split_once('/')?;
            format!("{first}1").parse().ok()
        });
        v4.or(v6)
    }
}

/// A server that has been asked for, and what must end before it is there.
#[derive(Debug)]
pub struct Created {
    /// The server.
    pub server: Server,
    /// Its making, its start.
    pub actions: Vec<Action>,
}

/// Something that takes its time.
#[derive(Clone, Debug, Deserialize)]
pub struct Action {
    /// Its id.
    pub id: u64,
    /// `create_server`, `start_server`, `delete_server` …
    pub command: String,
    /// How far it has come.
    pub status: ActionStatus,
    error: Option<ActionError>,
}

/// How far an action has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionStatus {
    /// Under way.
    Running,
    /// Done.
    Success,
    /// Failed.
    Error,
}

#[derive(Clone, Debug, Deserialize)]
struct ActionError {
    code: String,
    message: String,
}

#[derive(Deserialize)]
struct CreateAnswer {
    server: Server,
    action: Action,
    next_actions: Vec<Action>,
}

#[derive(Deserialize)]
struct ServerAnswer {
    server: Server,
}

#[derive(Deserialize)]
struct ActionAnswer {
    action: Action,
}

/// What a deletion may be answered with: some answers have no action.
#[derive(Deserialize)]
struct DeleteAnswer {
    action: Option<Action>,
}

#[derive(Deserialize)]
struct ServersPage {
    servers: Vec<Server>,
    meta: Meta,
}

#[derive(Deserialize)]
struct ActionsPage {
    actions: Vec<Action>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Meta {
    pagination: Pagination,
}

#[derive(Deserialize)]
struct Pagination {
    next_page: Option<u32>,
}

/// Something that comes in pages.
trait Page {
    type Entry;
    fn into_parts(self) -> (Vec<Self::Entry>, Meta);
}

impl Page for ServersPage {
    type Entry = Server;
    fn into_parts(self) -> (Vec<Server>, Meta) {
        (self.servers, self.meta)
    }
}

impl Page for ActionsPage {
    type Entry = Action;
    fn into_parts(self) -> (Vec<Action>, Meta) {
        (self.actions, self.meta)
    }
}

impl Hetzner {
    /// A client of the project a token belongs to.
    pub fn new(base_url: &str, token: Sensitive, time: Arc<dyn Time>, patience: Patience) -> Self {
        let service = Service::new("Hetzner", base_url, [&token], time, patience);
        Self { service, token }
    }

    /// What every client has.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The request that makes a server.
    pub fn create_call(new: &NewServer) -> Call {
        let body = serde_json::to_value(new).expect("strings and numbers make JSON");
        Call::new(Method::POST, "/servers").body(Body::Json(body))
    }

    /// The request for the server of a name.
    pub fn named_call(name: &str) -> Call {
        Call::new(Method::GET, "/servers").query([("name", name)])
    }

    /// Asks for a server, once: whether to ask again is for those to say who can find out
    /// whether it is there.
    ///
    /// # Errors
    /// [`ClientError`]; where [`ClientError::may_be_done`], look for the name first.
    pub async fn create_server(&self, new: &NewServer) -> Result<Created, ClientError> {
        let answer = self.service.send(&Self::create_call(new), Some(&self.token)).await?;
        let CreateAnswer { server, action, next_actions } = answer.json()?;
        Ok(Created { server, actions: std::iter::once(action).chain(next_actions).collect() })
    }

    /// The server of a name.
    ///
    /// # Errors
    /// [`ClientError`] when Hetzner cannot be asked.
    pub async fn server_named(&self, name: &str) -> Result<Option<Server>, ClientError> {
        let page: ServersPage = self.get(&Self::named_call(name)).await?;
        Ok(page.servers.into_iter().find(|server| server.name == name))
    }

    /// The server with an id.
    ///
    /// # Errors
    /// [`ClientError`] when Hetzner cannot be asked.
    pub async fn server(&self, id: u64) -> Result<Option<Server>, ClientError> {
        let answer = self.get(&Call::new(Method::GET, format!("/servers/{id}"))).await;
        Ok(found(answer)?.map(|ServerAnswer { server }| server))
    }

    /// Every server that has all of these labels.
    ///
    /// # Errors
    /// [`ClientError`] when Hetzner cannot be asked.
    pub async fn servers(&self, labels: &[(&str, &str)]) -> Result<Vec<Server>, ClientError> {
        let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.list::<ServersPage>("/servers", &[("label_selector", &pairs.join(","))]).await
    }

    /// Every action of a server, the latest last.
    ///
    /// # Errors
    /// [`ClientError`] when Hetzner cannot be asked.
    pub async fn actions(&self, server: u64) -> Result<Vec<Action>, ClientError> {
        let path = format!("/servers/{server}/actions");
        self.list::<ActionsPage>(&path, &[("sort", "id:asc")]).await
    }

    /// Deletes a server; one that is not there is deleted.
    ///
    /// # Errors
    /// [`ClientError`] when it may still be there.
    pub async fn delete_server(&self, id: u64) -> Result<(), ClientError> {
        let call = Call::new(Method::DELETE, format!("/servers/{id}"));
        let send = || self.service.send(&call, Some(&self.token));
        let Some(answer) = found(self.service.insist(send).await)? else { return Ok(()) };
        match answer.json::<DeleteAnswer>()?.action {
            Some(action) => self.finish(action).await,
            None => Ok(()),
        }
    }

    /// Waits until an action has ended well.
    ///
    /// # Errors
    /// [`Trouble::ActionFailed`], [`Trouble::ActionTooSlow`], or [`ClientError`] when Hetzner
    /// cannot be asked.
    pub async fn finish(&self, mut action: Action) -> Result<(), ClientError> {
        let Patience { poll, action_timeout, .. } = self.service.patience;
        let begun = self.service.time.passed();
        let call = Call::new(Method::GET, format!("/actions/{}", action.id));
        loop {
            let id = action.id;
            match action.status {
                ActionStatus::Success => return Ok(()),
                ActionStatus::Error => {
                    let trouble = self.failed(id, action.error);
                    return Err(self.service.error(action.command, trouble));
                }
                ActionStatus::Running => {}
            }
            let waited = self.service.time.passed().saturating_sub(begun);
            if waited >= action_timeout {
                let trouble = Trouble::ActionTooSlow { id, waited };
                return Err(self.service.error(action.command, trouble));
            }
            self.service.time.sleep(poll).await;
            action = self.get::<ActionAnswer>(&call).await?.action;
        }
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, call: &Call) -> Result<T, ClientError> {
        let ask = || async { self.service.send(call, Some(&self.token)).await?.json() };
        self.service.insist(ask).await
    }

    async fn list<P: Page + serde::de::DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<P::Entry>, ClientError> {
        let mut entries = Vec::new();
        let mut page = 1;
        for _ in 0..PAGES_MAX {
            let (number, size) = (page.to_string(), PAGE_ENTRIES.to_string());
            let paging = [("page", number.as_str()), ("per_page", size.as_str())];
            let call = Call::new(Method::GET, path).query(query.iter().copied().chain(paging));
            let (more, meta) = self.get::<P>(&call).await?.into_parts();
            entries.extend(more);
            match meta.pagination.next_page {
                Some(next) => page = next,
                None => return Ok(entries),
            }
        }
        let trouble = Trouble::Unreadable(format!("it has more than {PAGES_MAX} pages"));
        Err(self.service.error(format!("GET {path}"), trouble))
    }

    fn failed(&self, id: u64, error: Option<ActionError>) -> Trouble {
        let (code, message) = error.map_or_else(
            || ("action_failed".to_owned(), "the service says no more".to_owned()),
            |ActionError { code, message }| {
                (self.service.clean(&code), self.service.clean(&message))
            },
        );
        Trouble::ActionFailed { id, code, message }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn server(public_net: &serde_json::Value) -> Server {
        serde_json::from_value(json!({
            "id": 42, "name": "a", "status": "running", "created": "2026-01-01T00:00:00Z",
            "server_type": {"name": "cpx11"}, "location": {"name": "nbg1"}, "public_net": public_net,
        }))
        .unwrap()
    }

    #[test]
    fn the_address_is_the_ipv4_one_or_the_first_of_the_ipv6_network() {
        let ip = |net| server(&net).ip().map(|ip| ip.to_string());
        let v6 = json!({"ip": "2001:db8::/64"});
        assert_eq!(ip(json!({"ipv4": {"ip": "192.0.2.7"}, "ipv6": v6})), Some("192.0.2.7".into()));
        assert_eq!(ip(json!({"ipv4": null, "ipv6": v6})), Some("2001:db8::1".into()));
        assert_eq!(ip(json!({"ipv4": {"ip": "x\ny=z"}, "ipv6": null})), None);
    }

    #[test]
    fn a_new_server_has_a_location_and_no_datacenter() {
        let new = NewServer {
            name: "a".into(),
            server_type: "cpx11".into(),
            image: "ubuntu-24.04".into(),
            location: "nbg1".into(),
            ssh_keys: vec!["mine".into()],
            user_data: Sensitive::new("#cloud-config"),
            labels: BTreeMap::from([("managed-by".into(), "milepost".into())]),
            firewalls: vec![Firewall { firewall: 7 }],
            start_after_create: true,
        };
        let Body::Json(body) = Hetzner::create_call(&new).body else { panic!("it is JSON") };
        assert_eq!(
            body,
            json!({
                "name": "a", "server_type": "cpx11", "image": "ubuntu-24.04", "location": "nbg1",
                "ssh_keys": ["mine"], "user_data": "#cloud-config",
                "labels": {"managed-by": "milepost"}, "firewalls": [{"firewall": 7}],
                "start_after_create": true,
            })
        );
    }
}
