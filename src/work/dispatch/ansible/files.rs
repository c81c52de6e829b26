//! What a run reads: the inventory and the variables, in a directory of their own.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use milepost_projections::Node;
use nix::unistd::geteuid;
use serde_json::json;
use uuid::Uuid;

use crate::config::Ansible;
use crate::domain::node::{Host, NewNode};

/// How the names of private directories begin.
const PREFIX: &str = "milepost-";

/// A directory that only its owner enters; it goes with its owner, or with the supervisor of what
/// runs in it, or is found by [`remove_left_behind`].
pub(super) struct PrivateDirectory {
    path: PathBuf,
    /// The kernel takes it back when this process is gone, however that came about.
    _lock: File,
}

impl PrivateDirectory {
    /// Makes one with a name that nobody has.
    pub(super) fn make(id: Uuid) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("{PREFIX}{id}"));
        // One that is there already is somebody else's: this fails then.
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::open(&path)?;
        lock.try_lock()?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file that only its owner reads.
    pub(super) fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(self.path.join(name))?;
        file.write_all(text.as_bytes())
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.path));
    }
}

/// Removes the private directories of this user that were left behind: whoever made one is gone, and
/// `is_used` knows nobody else who would remove it. How many there were.
pub(super) fn remove_left_behind(is_used: impl Fn(&Path) -> bool) -> usize {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let private = entries.map(|entry| entry.path()).filter(|path| is_private(path));
    let remove = |path: PathBuf| {
        let Ok(lock) = File::open(&path) else { return false };
        lock.try_lock().is_ok() && !is_used(&path) && std::fs::remove_dir_all(&path).is_ok()
    };
    private.filter_map(|path| remove(path).then_some(())).count()
}

/// Whether this is a private directory of this user, and no link to something else.
fn is_private(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let id = name.and_then(|name| name.strip_prefix(PREFIX)?.parse::<Uuid>().ok());
    let found = std::fs::symlink_metadata(path);
    id.is_some() && found.is_ok_and(|it| it.is_dir() && it.uid() == geteuid().as_raw())
}

/// The inventory: one host, in the group `target`.
///
/// # Errors
/// In words, when something is not plainly what it should be: Ansible reads words, quotes, ranges
/// and templates into an inventory. A node was looked at when it was registered; what is read from
/// the log is looked at again.
pub(super) fn inventory(node: &Node, settings: &Ansible) -> Result<String, String> {
    let new = NewNode {
        hostname: node.hostname.clone(),
        public_ip: node.public_ip.clone(),
        ssh_user: Some(node.ssh_user.clone()),
        ssh_port: Some(node.ssh_port),
    };
    Host::parse(new)
        .map_err(|error| format!("The node cannot be put into an inventory: {error}"))?;
    let Node { hostname, public_ip, ssh_user, ssh_port, .. } = node;
    let mut host = format!(
        "{hostname} ansible_host={public_ip} ansible_user={ssh_user} ansible_port={ssh_port}"
    );
    if let Some(file) = &settings.private_key_file {
        if !is_plain_path(file) {
            let what = "has more in it than letters, digits and /._+@-";
            return Err(format!("MILEPOST_SSH_PRIVATE_KEY_FILE {what}"));
        }
        host.push_str(" ansible_ssh_private_key_file=");
        host.push_str(file);
    }
    Ok(format!("[target]\n{host}\n"))
}

/// The variables, as JSON.
///
/// # Errors
/// In words, for a key that is none: what looks like a template would be one.
pub(super) fn variables(node: &Node, settings: &Ansible) -> Result<String, String> {
    if !settings.node_ssh_keys.iter().all(|key| is_public_key(key)) {
        return Err("MILEPOST_NODE_SSH_KEYS has something that is no public key".to_owned());
    }
    let variables = json!({
        "node_id": node.id,
        "node_hostname": node.hostname,
        "node_public_ip": node.public_ip,
        "node_ssh_keys": settings.node_ssh_keys,
    });
    Ok(variables.to_string())
}

fn is_plain_path(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+@-".contains(&byte);
    text.starts_with('/') && text.bytes().all(plain)
}

/// A type, the key itself, and perhaps a comment. Source: `sshd(8)`.
fn is_public_key(text: &str) -> bool {
    let kinds = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    let unfit = |letter: char| letter.is_control() || matches!(letter, '{' | '}');
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let key = text.split(' ').nth(1).unwrap_or_default();
    kinds.iter().any(|kind| text.starts_with(kind))
        && !key.is_empty()
        && key.bytes().all(base64)
        && !text.contains(unfit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use jiff::Timestamp;
    use milepost_projections::NodeStatus;
    use milepost_schemas::NodeId;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3Nz+/= mari@example.com";

    fn node() -> Node {
        Node {
            id: NodeId(Uuid::from_u128(1)),
            hostname: "web-1".into(),
            public_ip: "192.0.2.1".into(),
            ssh_user: "deploy".into(),
            ssh_port: 2222,
            status: NodeStatus::Provisioning,
            active_job: None,
            latest_job: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn settings(pairs: &[(&str, &str)]) -> Ansible {
        Ansible::from_env(&|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn an_inventory_has_one_host_in_one_group() {
        let host = "web-1 ansible_host=192.0.2.1 ansible_user=deploy ansible_port=2222";
        assert_eq!(inventory(&node(), &settings(&[])), Ok(format!("[target]\n{host}\n")));
        let keyed = settings(&[("MILEPOST_SSH_PRIVATE_KEY_FILE", "/etc/milepost/id_ed25519")]);
        let file = "ansible_ssh_private_key_file=/etc/milepost/id_ed25519";
        assert_eq!(inventory(&node(), &keyed), Ok(format!("[target]\n{host} {file}\n")));
    }

    #[test]
    fn nothing_can_be_put_into_an_inventory_but_a_host() {
        for hostname in
            ["web ansible_connection=local", "web\n[all:vars]", "web[1:9]", "{{ x }}", ""]
        {
            let hostile = Node { hostname: hostname.into(), ..node() };
            assert!(inventory(&hostile, &settings(&[])).is_err(), "{hostname}");
        }
        for user in ["-oProxyCommand=id", "root ansible_connection=local", "'root'"] {
            let hostile = Node { ssh_user: user.into(), ..node() };
            assert!(inventory(&hostile, &settings(&[])).is_err(), "{user}");
        }
        for file in ["id", "/a b", "/a\n[all:vars]", "/{{ x }}", "/a#b", "/a'b"] {
            let hostile = settings(&[("MILEPOST_SSH_PRIVATE_KEY_FILE", file)]);
            assert!(inventory(&node(), &hostile).is_err(), "{file}");
        }
    }

    #[test]
    fn variables_are_those_of_the_contract() {
        let keys = format!("{KEY}, {KEY}");
        let keyed = settings(&[("MILEPOST_NODE_SSH_KEYS", &keys)]);
        let value: serde_json::Value =
            serde_json::from_str(&variables(&node(), &keyed).unwrap()).unwrap();
        let expected = json!({
            "node_id": "00000000-0000-0000-0000-000000000001",
            "node_hostname": "web-1",
            "node_public_ip": "192.0.2.1",
            "node_ssh_keys": [KEY, KEY],
        });
        assert_eq!(value, expected);
        for wrong in ["{{ lookup('pipe','id') }}", "ssh-ed25519", "ssh-rsa AAAA {{ x }}", "x AAAA"]
        {
            let hostile = settings(&[("MILEPOST_NODE_SSH_KEYS", wrong)]);
            assert!(variables(&node(), &hostile).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_private_directory_is_its_owners_and_goes_with_it() {
        let id = Uuid::from_u128(u128::from(std::process::id()));
        let directory = PrivateDirectory::make(id).unwrap();
        let path = directory.path().to_owned();
        directory.write("vars.json", "{}").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("vars.json"))), (0o700, 0o600));
        assert!(PrivateDirectory::make(id).is_err(), "it is somebody's");
        drop(directory);
        assert!(!path.exists());
    }
}
