//! Tailscale: the keys that let a machine in, and the machines that are in.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::error::found;
use super::{Answer, Body, Call, ClientError, Patience, Sensitive, Service, Time};

/// Where the API is.
pub const TAILSCALE_API_URL: &str = "https://api.tailscale.com";

/// The tailnet the credentials belong to.
pub const TAILNET: &str = "-";

/// How long a key can be used, in seconds: well above what a server takes to start, and short
/// enough that a key that was lost under way soon opens nothing.
pub const KEY_EXPIRY_SECONDS: u32 = 3_600;

/// The longest description of a key, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 50;

/// An access token is renewed so long before it expires: a request under way takes its time.
const TOKEN_MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// A client of one tailnet.
#[derive(Debug)]
pub struct Tailscale {
    service: Service,
    tailnet: String,
    credentials: Credentials,
    token: Mutex<Option<AccessToken>>,
}

/// The credentials of an OAuth client.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Its id.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Sensitive,
}

#[derive(Clone, Debug)]
struct AccessToken {
    text: Sensitive,
    renew_at: Timestamp,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Sensitive,
    expires_in: i64,
}

/// A key to be made: for one machine, once.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NewKey<'a> {
    description: &'a str,
    expiry_seconds: u32,
    capabilities: Capabilities<'a>,
}

#[derive(Debug, Serialize)]
struct Capabilities<'a> {
    devices: Devices<'a>,
}

#[derive(Debug, Serialize)]
struct Devices<'a> {
    create: CreateDevices<'a>,
}

#[derive(Debug, Serialize)]
struct CreateDevices<'a> {
    reusable: bool,
    ephemeral: bool,
    preauthorized: bool,
    tags: &'a [String],
}

/// A key that was made. This is the only time that the service tells it.
#[derive(Clone, Debug, Deserialize)]
pub struct AuthKey {
    /// Its id, which is no secret.
    pub id: String,
    /// The key itself.
    pub key: Sensitive,
}

/// A key as it is listed.
#[derive(Clone, Debug, Deserialize)]
pub struct KeyEntry {
    /// Its id.
    pub id: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
}

/// A machine of the tailnet.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its id.
    #[serde(rename = "nodeId")]
    pub id: String,
    /// The host name it has said.
    #[serde(default)]
    pub hostname: String,
    /// Its addresses in the tailnet.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// When it came in.
    #[serde(default)]
    pub created: String,
}

impl Device {
    /// Its address in the tailnet: the IPv4 one if there is one.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        let addresses = self.addresses.iter().filter_map(|address| address.parse().ok());
        addresses.min_by_key(std::net::IpAddr::is_ipv6)
    }
}

#[derive(Deserialize)]
struct KeysAnswer {
    keys: Vec<KeyEntry>,
}

#[derive(Deserialize)]
struct DevicesAnswer {
    devices: Vec<Device>,
}

impl Tailscale {
    /// A client of a tailnet.
    pub fn new(
        base_url: &str,
        tailnet: &str,
        credentials: Credentials,
        time: Arc<dyn Time>,
        patience: Patience,
    ) -> Self {
        let secrets = [&credentials.client_secret];
        let service = Service::new("Tailscale", base_url, secrets, time, patience);
        Self { service, tailnet: tailnet.to_owned(), credentials, token: Mutex::default() }
    }

    /// What every client has.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The request for an access token.
    pub fn token_call(credentials: &Credentials) -> Call {
        let form = vec![
            ("grant_type", Sensitive::new("client_credentials")),
            ("client_id", Sensitive::new(&credentials.client_id)),
            ("client_secret", credentials.client_secret.clone()),
        ];
        Call::new(Method::POST, "/api/v2/oauth/token").body(Body::Form(form))
    }

    /// The request for a key.
    pub fn create_key_call(&self, description: &str, tags: &[String]) -> Call {
        let create = CreateDevices { reusable: false, ephemeral: true, preauthorized: true, tags };
        let capabilities = Capabilities { devices: Devices { create } };
        let new = NewKey { description, expiry_seconds: KEY_EXPIRY_SECONDS, capabilities };
        let body = serde_json::to_value(new).expect("strings and numbers make JSON");
        Call::new(Method::POST, self.path("/keys")).body(Body::Json(body))
    }

    /// The request for every device.
    pub fn devices_call(&self) -> Call {
        Call::new(Method::GET, self.path("/devices"))
    }

    /// Asks for a key that lets in one machine, once; it leaves when it is off for a while. The
    /// description is how it is found should the answer be lost.
    ///
    /// # Errors
    /// [`ClientError`]; where [`ClientError::may_be_done`], look for the description first.
    pub async fn create_key(
        &self,
        description: &str,
        tags: &[String],
    ) -> Result<AuthKey, ClientError> {
        self.send(&self.create_key_call(description, tags)).await?.json()
    }

    /// Every key that can be used.
    ///
    /// # Errors
    /// [`ClientError`] when Tailscale cannot be asked.
    pub async fn keys(&self) -> Result<Vec<KeyEntry>, ClientError> {
        let call = Call::new(Method::GET, self.path("/keys")).query([("all", "true")]);
        let ask = || async { self.send(&call).await?.json() };
        let KeysAnswer { keys } = self.service.insist(ask).await?;
        Ok(keys)
    }

    /// Deletes a key; one that is not there is deleted.
    ///
    /// # Errors
    /// [`ClientError`] when it may still be there.
    pub async fn delete_key(&self, id: &str) -> Result<(), ClientError> {
        self.delete(self.path(&format!("/keys/{}", segment(id)))).await
    }

    /// Every machine of the tailnet.
    ///
    /// # Errors
    /// [`ClientError`] when Tailscale cannot be asked.
    pub async fn devices(&self) -> Result<Vec<Device>, ClientError> {
        let call = self.devices_call();
        let ask = || async { self.send(&call).await?.json() };
        let DevicesAnswer { devices } = self.service.insist(ask).await?;
        Ok(devices)
    }

    /// The machine that says it has this host name and has one of these tags, which a machine
    /// cannot give itself; the latest where there are several.
    ///
    /// # Errors
    /// [`ClientError`] when Tailscale cannot be asked.
    pub async fn device_named(
        &self,
        hostname: &str,
        tags: &[String],
    ) -> Result<Option<Device>, ClientError> {
        let devices = self.devices().await?.into_iter();
        let is_it = |device: &Device| {
            device.hostname == hostname && device.tags.iter().any(|tag| tags.contains(tag))
        };
        Ok(devices.filter(is_it).max_by(|a, b| a.created.cmp(&b.created)))
    }

    /// Deletes a machine; one that is not there is deleted.
    ///
    /// # Errors
    /// [`ClientError`] when it may still be there.
    pub async fn delete_device(&self, id: &str) -> Result<(), ClientError> {
        self.delete(format!("/api/v2/device/{}", segment(id))).await
    }

    async fn delete(&self, path: String) -> Result<(), ClientError> {
        let call = Call::new(Method::DELETE, path);
        let deleted = self.service.insist(|| self.send(&call)).await;
        found(deleted).map(drop)
    }

    /// Sends a request once; with a new token where the old one is refused.
    async fn send(&self, call: &Call) -> Result<Answer, ClientError> {
        let token = self.access_token(None).await?;
        match self.service.send(call, Some(&token)).await {
            Err(error) if error.status() == Some(401) => {
                let token = self.access_token(Some(&token)).await?;
                self.service.send(call, Some(&token)).await
            }
            answer => answer,
        }
    }

    /// A token that is in force, and is not the refused one.
    async fn access_token(&self, refused: Option<&Sensitive>) -> Result<Sensitive, ClientError> {
        let mut kept = self.token.lock().await;
        let now = self.service.time.now();
        let usable = |token: &&AccessToken| now < token.renew_at && Some(&token.text) != refused;
        if let Some(token) = kept.as_ref().filter(usable) {
            return Ok(token.text.clone());
        }
        let answer = self.service.send(&Self::token_call(&self.credentials), None).await?;
        let TokenAnswer { access_token: text, expires_in } = answer.json()?;
        let lasts = SignedDuration::from_secs(expires_in).saturating_sub(TOKEN_MARGIN);
        let renew_at = now.checked_add(lasts).unwrap_or(now);
        *kept = Some(AccessToken { text: text.clone(), renew_at });
        Ok(text)
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/v2/tailnet/{}{rest}", segment(&self.tailnet))
    }
}

/// A name as one part of a path, whatever is in it.
fn segment(name: &str) -> String {
    form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_stays_one_part_of_a_path() {
        assert_eq!(segment("kABC1CNTRL"), "kABC1CNTRL");
        assert_eq!(segment("../a b?c#d"), "..%2Fa%20b%3Fc%23d");
        assert_eq!(segment("-"), "-");
    }

    #[test]
    fn the_ipv4_address_is_preferred() {
        let addresses = ["fd7a:115c:a1e0::1", "100.64.0.7", "nonsense"].map(str::to_owned).to_vec();
        let (id, hostname) = ("n1".to_owned(), "a".to_owned());
        let device = Device { id, hostname, addresses, tags: vec![], created: String::new() };
        assert_eq!(device.ip().map(|ip| ip.to_string()), Some("100.64.0.7".to_owned()));
    }
}
