//! Undoing a server.

use milepost::clients::Class;
use milepost::domain::AttemptId;
use milepost::work::servers::{ServerError, Target, Undo, Undone};
use serde_json::json;

use super::{Setting, attempt_id, id_of, identity, words};
use crate::doubles::hetzner::refusal;
use crate::doubles::{Fault, Reply};

pub fn undo_of(attempt: AttemptId) -> Undo {
    Undo { target: Target::Attempt(attempt), device_id: None, key_id: None }
}

fn undo_id(id: u64) -> Undo {
    Undo { target: Target::Id(id), device_id: None, key_id: None }
}

impl Setting {
    pub async fn undo(&self, id: u64) -> Undone {
        let undone = self.servers.destroy(&undo_id(id)).await;
        undone.unwrap_or_else(|error| panic!("{}", words(&error)))
    }

    pub async fn undo_attempt(&self, number: u32) -> Undone {
        let undone = self.servers.destroy(&undo_of(attempt_id(number))).await;
        undone.unwrap_or_else(|error| panic!("{}", words(&error)))
    }
}

#[tokio::test]
async fn the_server_its_device_and_its_key_go_and_again_is_done() {
    for by_id in [true, false] {
        let setting = Setting::new().await;
        let id = id_of(&setting.created(1).await);
        let again =
            async || if by_id { setting.undo(id).await } else { setting.undo_attempt(1).await };
        let undone = again().await;
        assert_eq!(undone.servers, [id]);
        assert_eq!(undone.devices, ["n2CNTRL"]);
        assert!(setting.clouds.leftovers().is_empty());
        assert_eq!(again().await, Undone::default());
    }
}

#[tokio::test]
async fn what_is_known_is_undone_even_when_the_server_is_gone() {
    let setting = Setting::new().await;
    let id = id_of(&setting.created(1).await);
    setting.clouds.hetzner.state().servers.clear();
    let device_id = setting.clouds.tailscale.state().devices.keys().next().cloned();
    let key_id = Some("k9CNTRL".to_owned());
    let undo = Undo { target: Target::Id(id), device_id, key_id };
    setting.servers.destroy(&undo).await.unwrap();
    assert!(setting.clouds.leftovers().is_empty());
}

#[tokio::test]
async fn other_attempts_and_strangers_are_left_alone() {
    let setting = Setting::new().await;
    let first = id_of(&setting.created(1).await);
    let second = id_of(&setting.created(2).await);
    let stranger = setting.clouds.hetzner.state().add("web-1", &json!({"team": "blue"}));
    setting.undo_attempt(1).await;
    let left = setting.clouds.leftovers();
    assert_eq!(
        left,
        [format!("server {second}"), format!("server {stranger}"), "device n4CNTRL".into()]
    );
    assert!(!left.contains(&format!("server {first}")));
    let error = setting.servers.destroy(&undo_id(stranger)).await.unwrap_err();
    assert!(matches!(error, ServerError::NotOurs { id } if id == stranger));
    assert_eq!(error.class(), Class::Final);
    assert_eq!(setting.clouds.leftovers(), left);
}

#[tokio::test]
async fn a_lost_answer_is_a_deletion_all_the_same() {
    for fault in [Fault::CutAfter, Fault::CutBefore, Fault::RefuseAfter(refusal(502, "x", "no"))] {
        let setting = Setting::new().await;
        setting.created(1).await;
        setting.clouds.hetzner.fail_next("DELETE /servers/{id}", fault.clone());
        setting.clouds.tailscale.fail_next("DELETE /api/v2/device/{id}", fault);
        setting.undo_attempt(1).await;
        assert!(setting.clouds.leftovers().is_empty());
    }
}

#[tokio::test]
async fn a_server_that_is_locked_is_waited_for() {
    let setting = Setting::new().await;
    setting.created(1).await;
    let locked = Fault::Refuse(refusal(423, "locked", "an action is running"));
    for _ in 0..3 {
        setting.clouds.hetzner.fail_next("DELETE /servers/{id}", locked.clone());
    }
    setting.undo_attempt(1).await;
    assert_eq!(setting.clouds.hetzner.count("DELETE /servers/{id}"), 4);
}

#[tokio::test]
async fn one_refusal_does_not_keep_the_others() {
    let setting = Setting::new().await;
    let id = id_of(&setting.created(1).await);
    let protected = Fault::Refuse(refusal(403, "forbidden", "deletion is protected"));
    setting.clouds.hetzner.fail_each("DELETE /servers/{id}", protected);
    let error = setting.servers.destroy(&undo_of(attempt_id(1))).await.unwrap_err();
    assert!(words(&error).contains("deletion is protected"));
    assert_eq!(setting.clouds.leftovers(), [format!("server {id}")]);
    let out = Reply::new(500, json!({"message": "out of order"}));
    setting.clouds.hetzner.heal();
    setting.clouds.tailscale.fail_each("GET /api/v2/tailnet/{tailnet}/keys", Fault::Refuse(out));
    let error = setting.servers.destroy(&undo_of(attempt_id(1))).await.unwrap_err();
    assert_eq!(error.class(), Class::Retryable);
    assert!(setting.clouds.leftovers().is_empty());
}

#[tokio::test]
async fn every_page_of_servers_is_listed() {
    let setting = Setting::new().await;
    for number in 1..=120 {
        let identity = identity(number);
        setting.clouds.hetzner.state().add(&identity.name(), &json!(identity.labels()));
    }
    setting.clouds.hetzner.state().add("web-1", &json!({}));
    let list = setting.servers.list().await.unwrap();
    assert_eq!(list.len(), 120);
    assert_eq!(setting.clouds.hetzner.count("GET /servers"), 3);
}
