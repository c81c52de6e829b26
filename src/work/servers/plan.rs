//! What making a server would ask of whom, without asking it.

use std::fmt::Write as _;

use serde_json::Value;

use super::{ServerError, ServerOrder, Servers, location, new_server};
use crate::clients::hetzner::Hetzner;
use crate::clients::tailscale::{AuthKey, Credentials, Tailscale};
use crate::clients::{Body, Call, Sensitive, Service};

/// Stands in the user-data where the key would.
const KEY_PLACEHOLDER: &str = "tskey-auth-masked";

/// Stands in the requests where a key's or an action's id would.
const ID_PLACEHOLDER: &str = "ID";

/// Every request that making a server sends when nothing goes wrong, in order, and its user-data.
/// They are made by what makes the real ones. Nothing is sent; nothing secret is shown.
///
/// # Errors
/// [`ServerError`] when there is no such region.
pub fn plan(
    servers: &Servers,
    client_id: &str,
    order: &ServerOrder,
) -> Result<String, ServerError> {
    let (hetzner, tailscale) = (servers.hetzner.service(), servers.tailscale.service());
    let name = order.identity.name();
    let credentials = Credentials {
        client_id: client_id.to_owned(),
        client_secret: Sensitive::new(Sensitive::MASK),
    };
    let key = AuthKey { id: ID_PLACEHOLDER.to_owned(), key: Sensitive::new(KEY_PLACEHOLDER) };
    let new = new_server(order, location(&order.region)?, &key)?;
    let user_data = new.user_data.expose().to_owned();
    let action = Call::new(reqwest::Method::GET, format!("/actions/{ID_PLACEHOLDER}"));
    let tags = &order.shape.tailscale_tags;
    let steps = [
        (hetzner, Hetzner::named_call(&name), "a server of this attempt is taken as it is"),
        (tailscale, Tailscale::token_call(&credentials), ""),
        (tailscale, servers.tailscale.create_key_call(&name, tags), ""),
        (hetzner, Hetzner::create_call(&new), "the user-data stands below"),
        (hetzner, action, "until it has ended, and each that follows it"),
        (tailscale, servers.tailscale.devices_call(), "until the server is among them"),
    ];
    let mut text = "# Nothing was sent. Making this server would ask, in this order:\n".to_owned();
    for (service, call, remark) in &steps {
        show(&mut text, service, call, remark);
    }
    write!(text, "\n# User-data, {} bytes:\n\n{user_data}", user_data.len())
        .expect("a string takes everything");
    Ok(text)
}

fn show(text: &mut String, service: &Service, call: &Call, remark: &str) {
    let body = match &call.body {
        Body::Empty => String::new(),
        Body::Json(value) => json(value.clone()),
        Body::Form(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name}={}\n", value.expose()));
            fields.collect()
        }
    };
    let remark = if remark.is_empty() { String::new() } else { format!("   # {remark}") };
    write!(text, "\n{} {}{remark}\n{body}", call.method, service.url(&call.path))
        .expect("a string takes everything");
}

fn json(mut value: Value) -> String {
    if let Some(user_data) = value.get_mut("user_data") {
        *user_data = Sensitive::MASK.into();
    }
    format!("{value:#}\n")
}
