//! The server of an attempt: made once however often it is asked for, and undone however little
//! of it there is.
//!
//! Its name and labels follow from the attempt, so nothing has to be remembered to find it again.

mod plan;
mod undo;
mod user_data;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use plan::plan;
pub use user_data::{CLOCK_WAIT_SECONDS, UserDataError};

use crate::clients::hetzner::{
    Action, Created, Firewall, Hetzner, NewServer, Server, UNIQUENESS_ERROR,
};
use crate::clients::tailscale::{AuthKey, Device, Tailscale};
use crate::clients::{Class, ClientError, Patience, Time};
use crate::config::{CloudAccounts, ServerShape};
use crate::domain::agent::REGIONS;
use crate::domain::server::{MANAGED_BY, is_ours};
use crate::domain::{AttemptId, ServerIdentity};

/// The label with the id of the key the server joins with, so that it can be undone as well.
pub const KEY_LABEL: &str = "milepost-tailscale-key";

/// The longest value of a label.
const LABEL_CHARS_MAX: usize = 63;

/// The commands that must end before a new server is there.
const BIRTH: [&str; 2] = ["create_server", "start_server"];

/// The two accounts servers live in.
#[derive(Debug)]
pub struct Servers {
    /// Where they run.
    pub hetzner: Hetzner,
    /// Where they are reached.
    pub tailscale: Tailscale,
    time: Arc<dyn Time>,
    patience: Patience,
}

/// A server to be made.
#[derive(Clone, Debug)]
pub struct ServerOrder {
    /// Whose it is.
    pub identity: ServerIdentity,
    /// Where it is to stand: one of [`REGIONS`].
    pub region: String,
    /// What it is like.
    pub shape: ServerShape,
    /// How long it may take to join the tailnet, from when it runs.
    pub enrol_timeout: Duration,
}

/// Something that became known while a server was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Its name, before anything is asked for.
    ServerName(String),
    /// The key it joins with.
    TailscaleKeyId(String),
    /// Its id: from here on it costs money.
    ServerId(u64),
    /// Its public address.
    ServerIp(std::net::IpAddr),
    /// The machine it has become in the tailnet.
    TailscaleDeviceId(String),
    /// Its address there.
    TailscaleIp(std::net::IpAddr),
}

impl Output {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ServerName(_) => "server_name",
            Self::TailscaleKeyId(_) => "tailscale_key_id",
            Self::ServerId(_) => "server_id",
            Self::ServerIp(_) => "server_ip",
            Self::TailscaleDeviceId(_) => "tailscale_device_id",
            Self::TailscaleIp(_) => "tailscale_ip",
        }
    }
}

impl fmt::Display for Output {
    /// One line `name=value`. Ids from outside keep no sign that would begin another line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name())?;
        match self {
            Self::ServerId(id) => write!(f, "{id}"),
            Self::ServerIp(ip) | Self::TailscaleIp(ip) => write!(f, "{ip}"),
            Self::ServerName(text) | Self::TailscaleKeyId(text) | Self::TailscaleDeviceId(text) => {
                let letters = text.chars().filter(|letter| !letter.is_control());
                f.write_str(&letters.collect::<String>())
            }
        }
    }
}

/// Why there is no server, or still one.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Nobody knows such a region.
    #[error("{region:?} is no region; there are {}", REGIONS.join(", "))]
    Region {
        /// What was given for one.
        region: String,
    },
    /// The name is taken by a server that is not this attempt's. It is left alone.
    #[error("server {id} has the name {name}, but not its {}: it is not ours to take", labels.join(", "))]
    Foreign {
        /// Its id.
        id: u64,
        /// The name.
        name: String,
        /// The labels that differ.
        labels: Vec<String>,
    },
    /// The server is none of ours. It is left alone.
    #[error("server {id} has no label {}={}: it is not ours to delete", MANAGED_BY.0, MANAGED_BY.1)]
    NotOurs {
        /// Its id.
        id: u64,
    },
    /// The server runs and has not joined the tailnet. It is left for whoever undoes the attempt.
    #[error("{name} has not joined the tailnet after {} s", waited.as_secs())]
    NotEnrolled {
        /// Its name.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// What it is to do at its first start cannot be said.
    #[error(transparent)]
    UserData(#[from] UserDataError),
    /// What became known could not be kept.
    #[error("an output cannot be written")]
    Output(#[source] io::Error),
    /// A service could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl ServerError {
    /// Whether trying again may help.
    pub fn class(&self) -> Class {
        match self {
            Self::Client(error) => error.class(),
            Self::NotEnrolled { .. } => Class::Retryable,
            Self::Region { .. }
            | Self::Foreign { .. }
            | Self::NotOurs { .. }
            | Self::UserData(_)
            | Self::Output(_) => Class::Final,
        }
    }
}

/// Which server to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one with this id.
    Id(u64),
    /// The one of this attempt.
    Attempt(AttemptId),
}

/// What to undo: a server, and what else is known of it.
#[derive(Clone, Debug)]
pub struct Undo {
    /// The server.
    pub target: Target,
    /// Its machine in the tailnet.
    pub device_id: Option<String>,
    /// Its key.
    pub key_id: Option<String>,
}

/// What was undone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// Servers that were there.
    pub servers: Vec<u64>,
    /// Devices that were looked up or given.
    pub devices: Vec<String>,
    /// Keys that were looked up or given.
    pub keys: Vec<String>,
}

impl Servers {
    /// The servers of these accounts.
    pub fn new(accounts: &CloudAccounts, time: Arc<dyn Time>, patience: Patience) -> Self {
        let hetzner = Hetzner::new(
            &accounts.hcloud_endpoint,
            accounts.hcloud_token.clone(),
            Arc::clone(&time),
            patience,
        );
        let tailscale = Tailscale::new(
            &accounts.tailscale_api_url,
            &accounts.tailnet,
            accounts.tailscale.clone(),
            Arc::clone(&time),
            patience,
        );
        Self { hetzner, tailscale, time, patience }
    }

    /// Makes the server of an attempt, or takes the one that is there, and waits until it has
    /// joined the tailnet. Each thing is told to `tell` before anything else is begun, so that it
    /// can be undone wherever this breaks off.
    ///
    /// # Errors
    /// [`ServerError`]; what was told by then exists.
    pub async fn create(
        &self,
        order: &ServerOrder,
        mut tell: impl FnMut(Output) -> io::Result<()>,
    ) -> Result<(), ServerError> {
        let mut tell = |output| tell(output).map_err(ServerError::Output);
        let location = location(&order.region)?;
        let name = order.identity.name();
        tell(Output::ServerName(name.clone()))?;
        let (server, actions) = if let Some(adopted) = self.adopt(order).await? {
            if let Some(key_id) = adopted.0.labels.get(KEY_LABEL) {
                tell(Output::TailscaleKeyId(key_id.clone()))?;
            }
            adopted
        } else {
            let key = self.make_key(&name, &order.shape.tailscale_tags).await?;
            tell(Output::TailscaleKeyId(key.id.clone()))?;
            self.make_server(order, location, &key).await?
        };
        tell(Output::ServerId(server.id))?;
        if let Some(ip) = server.ip() {
            tell(Output::ServerIp(ip))?;
        }
        for action in actions {
            self.hetzner.finish(action).await?;
        }
        let device = self.enrolled(order, &name).await?;
        let ip = device.ip();
        tell(Output::TailscaleDeviceId(device.id))?;
        ip.map_or(Ok(()), |ip| tell(Output::TailscaleIp(ip)))
    }

    /// Undoes a server, its key and its machine in the tailnet; what is not there is undone. Once
    /// the server was looked for, all three are tried, whatever becomes of the others.
    ///
    /// # Errors
    /// The first [`ServerError`]: something may still be there.
    pub async fn destroy(&self, undo: &Undo) -> Result<Undone, ServerError> {
        let servers = match undo.target {
            Target::Id(id) => self.hetzner.server(id).await?.into_iter().collect(),
            Target::Attempt(attempt) => self.of_attempt(attempt).await?,
        };
        if let Some(foreign) = servers.iter().find(|server| !is_ours(&server.labels)) {
            return Err(ServerError::NotOurs { id: foreign.id });
        }
        let attempt = match undo.target {
            Target::Attempt(attempt) => Some(attempt),
            Target::Id(_) => servers.iter().find_map(|server| AttemptId::of_labels(&server.labels)),
        };
        let mut undone = Undone::default();
        let mut first_error = Ok(());
        for server in &servers {
            match self.hetzner.delete_server(server.id).await {
                Ok(()) => undone.servers.push(server.id),
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        // The machine last: nothing can join any more once server and key are gone.
        let labelled = servers.iter().filter_map(|server| server.labels.get(KEY_LABEL));
        let keys = undo.key_id.iter().chain(labelled).cloned().collect();
        first_error = first_error.and(self.delete_keys(attempt, keys, &mut undone).await);
        let devices = undo.device_id.iter().cloned().collect();
        first_error = first_error.and(self.delete_devices(attempt, devices, &mut undone).await);
        Ok(first_error.map(|()| undone)?)
    }

    /// Every server of ours.
    ///
    /// # Errors
    /// [`ServerError`] when Hetzner cannot be asked.
    pub async fn list(&self) -> Result<Vec<Server>, ServerError> {
        Ok(self.hetzner.servers(&[MANAGED_BY]).await?)
    }

    /// The servers of an attempt: one, or none.
    ///
    /// # Errors
    /// [`ServerError`] when Hetzner cannot be asked.
    pub async fn of_attempt(&self, attempt: AttemptId) -> Result<Vec<Server>, ServerError> {
        let labels = attempt.labels();
        let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        Ok(self.hetzner.servers(&labels).await?)
    }

    /// The server of the name, if there is one and it is this attempt's; with what must end
    /// before it is there.
    async fn adopt(
        &self,
        order: &ServerOrder,
    ) -> Result<Option<(Server, Vec<Action>)>, ServerError> {
        let Some(server) = self.hetzner.server_named(&order.identity.name()).await? else {
            return Ok(None);
        };
        let labels = order.identity.disagreements(&server.labels);
        if !labels.is_empty() {
            return Err(ServerError::Foreign { id: server.id, name: server.name, labels });
        }
        let actions = self.hetzner.actions(server.id).await?;
        let birth = actions.into_iter().filter(|action| BIRTH.contains(&action.command.as_str()));
        Ok(Some((server, birth.collect())))
    }

    /// Makes a key. One whose making was not answered cannot be used by anybody: it goes.
    async fn make_key(&self, name: &str, tags: &[String]) -> Result<AuthKey, ServerError> {
        let mut tried = 1;
        loop {
            let error = match self.tailscale.create_key(name, tags).await {
                Ok(key) => return Ok(key),
                Err(error) => error,
            };
            let may_be_made = error.may_be_done();
            self.tailscale.service().pause(tried, error).await?;
            if may_be_made {
                self.delete_keys_named(name).await?;
            }
            tried += 1;
        }
    }

    /// Makes the server. Before each further try it is looked for: an answer may have been lost,
    /// and another process may have been quicker.
    async fn make_server(
        &self,
        order: &ServerOrder,
        location: &str,
        key: &AuthKey,
    ) -> Result<(Server, Vec<Action>), ServerError> {
        let new = new_server(order, location, key)?;
        let mut tried = 1;
        loop {
            let error = match self.hetzner.create_server(&new).await {
                Ok(Created { server, actions }) => return Ok((server, actions)),
                Err(error) => error,
            };
            let may_be_made = error.may_be_done();
            if error.code() == Some(UNIQUENESS_ERROR) && tried < self.patience.tries_max {
                if let Some(adopted) = self.adopt_instead(order, key).await? {
                    return Ok(adopted);
                }
                // Whoever has the name is not listed yet, or is just being deleted.
                self.time.sleep(self.patience.poll).await;
            } else if let Err(error) = self.hetzner.service().pause(tried, error).await {
                if !may_be_made {
                    self.drop_key(key).await;
                }
                return Err(error.into());
            }
            if let Some(adopted) = self.adopt_instead(order, key).await? {
                return Ok(adopted);
            }
            tried += 1;
        }
    }

    /// Takes the server that is there. It may join with this key, if it was this process that
    /// asked for it, or with that of another.
    async fn adopt_instead(
        &self,
        order: &ServerOrder,
        key: &AuthKey,
    ) -> Result<Option<(Server, Vec<Action>)>, ServerError> {
        let adopted = match self.adopt(order).await {
            Err(error @ ServerError::Foreign { .. }) => {
                self.drop_key(key).await;
                return Err(error);
            }
            adopted => adopted?,
        };
        if let Some((server, _)) = &adopted
            && server.labels.get(KEY_LABEL).is_some_and(|id| *id != key.id)
        {
            self.drop_key(key).await;
        }
        Ok(adopted)
    }

    /// Deletes a key that nobody will use. Should that fail, it opens nothing after an hour.
    async fn drop_key(&self, key: &AuthKey) {
        drop(self.tailscale.delete_key(&key.id).await);
    }

    /// Waits until a server has joined the tailnet.
    async fn enrolled(&self, order: &ServerOrder, name: &str) -> Result<Device, ServerError> {
        let begun = self.time.passed();
        loop {
            let device = self.tailscale.device_named(name, &order.shape.tailscale_tags).await?;
            if let Some(device) = device.filter(|device| device.ip().is_some()) {
                return Ok(device);
            }
            let waited = self.time.passed().saturating_sub(begun);
            if waited >= order.enrol_timeout {
                return Err(ServerError::NotEnrolled { name: name.to_owned(), waited });
            }
            self.time.sleep(self.patience.poll).await;
        }
    }

    async fn delete_keys_named(&self, name: &str) -> Result<(), ClientError> {
        let keys = self.tailscale.keys().await?;
        for key in keys.iter().filter(|key| key.description == name) {
            self.tailscale.delete_key(&key.id).await?;
        }
        Ok(())
    }

    async fn delete_keys(
        &self,
        attempt: Option<AttemptId>,
        mut keys: Vec<String>,
        undone: &mut Undone,
    ) -> Result<(), ClientError> {
        if let Some(attempt) = attempt {
            let all = self.tailscale.keys().await?.into_iter();
            let its = all.filter(|key| AttemptId::of_name(&key.description) == Some(attempt));
            keys.extend(its.map(|key| key.id));
        }
        keys.sort();
        keys.dedup();
        for id in keys {
            self.tailscale.delete_key(&id).await?;
            undone.keys.push(id);
        }
        Ok(())
    }

    async fn delete_devices(
        &self,
        attempt: Option<AttemptId>,
        mut devices: Vec<String>,
        undone: &mut Undone,
    ) -> Result<(), ClientError> {
        if let Some(attempt) = attempt {
            devices.extend(self.devices_of(attempt).await?);
        }
        devices.sort();
        devices.dedup();
        for id in devices {
            self.tailscale.delete_device(&id).await?;
            undone.devices.push(id);
        }
        Ok(())
    }

    /// The machines of an attempt in the tailnet.
    async fn devices_of(&self, attempt: AttemptId) -> Result<Vec<String>, ClientError> {
        let all = self.tailscale.devices().await?.into_iter();
        // A host name is what a machine says of itself; a tag is given to it.
        let its = all.filter(|device| {
            AttemptId::of_name(&device.hostname) == Some(attempt) && !device.tags.is_empty()
        });
        Ok(its.map(|device| device.id).collect())
    }
}

/// The request for a server that joins with a key.
fn new_server(
    order: &ServerOrder,
    location: &str,
    key: &AuthKey,
) -> Result<NewServer, UserDataError> {
    let name = order.identity.name();
    let user_data = user_data::render(&name, &key.key)?;
    let shape = order.shape.clone();
    Ok(NewServer {
        name,
        server_type: shape.server_type,
        image: shape.image,
        location: location.to_owned(),
        ssh_keys: shape.ssh_keys,
        user_data,
        labels: labels(order.identity, &key.id),
        firewalls: shape.firewalls.into_iter().map(|firewall| Firewall { firewall }).collect(),
        start_after_create: true,
    })
}

/// The labels of a new server; an id that is no label's value is left out.
fn labels(identity: ServerIdentity, key_id: &str) -> BTreeMap<String, String> {
    let mut labels = identity.labels();
    let is_value = (1..=LABEL_CHARS_MAX).contains(&key_id.len())
        && key_id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_value {
        labels.insert(KEY_LABEL.to_owned(), key_id.to_owned());
    }
    labels
}

/// Where a region's servers stand.
///
/// # Errors
/// [`ServerError::Region`] when there is no such region.
pub fn location(region: &str) -> Result<&'static str, ServerError> {
    match region {
        "us-east" => Ok("ash"),
        "us-west" => Ok("hil"),
        "eu-central" => Ok("nbg1"),
        "eu-west" => Ok("fsn1"),
        "eu-north" => Ok("hel1"),
        other => Err(ServerError::Region { region: other.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_has_a_location() {
        let locations: Vec<_> = REGIONS.iter().map(|region| location(region).unwrap()).collect();
        assert_eq!(locations, ["nbg1", "hel1", "fsn1", "ash", "hil"]);
    }

    #[test]
    fn an_unknown_region_is_final_and_the_known_ones_are_named() {
        let error = location("mars\n").unwrap_err();
        assert_eq!(error.class(), Class::Final);
        assert_eq!(
            error.to_string(),
            r#""mars\n" is no region; there are eu-central, eu-north, eu-west, us-east, us-west"#
        );
    }

    #[test]
    fn an_output_is_one_line_whatever_is_in_it() {
        let output = Output::TailscaleDeviceId("n1\nserver_id=7\r".to_owned());
        assert_eq!(output.to_string(), "tailscale_device_id=n1server_id=7");
        assert_eq!(Output::ServerId(42).to_string(), "server_id=42");
    }
}
