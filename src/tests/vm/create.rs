//! Making a server.

use std::io;

use milepost::clients::Class;
use milepost::work::servers::{KEY_LABEL, Output, ServerError};
use serde_json::json;

use super::{
    ENROL_TIMEOUT, OUTPUTS, Setting, attempt_id, id_of, identity, names, no_servers, order, words,
};
use crate::doubles::hetzner::refusal;
use crate::doubles::{Fault, Reply};

#[tokio::test]
async fn a_server_is_made_and_joins_the_tailnet() {
    let setting = Setting::new().await;
    let told = setting.created(1).await;
    assert_eq!(names(&told), OUTPUTS);
    let name = identity(1).name();
    assert_eq!(told[0], Output::ServerName(name.clone()));
    assert_eq!(told[4].to_string(), "tailscale_device_id=n2CNTRL");
    assert_eq!(told[5].to_string(), "tailscale_ip=100.64.0.2");
    let body = setting.clouds.hetzner.state().made[0].clone();
    let expected = json!({
        "name": name,
        "server_type": "cpx11",
        "image": "ubuntu-24.04",
        "location": "nbg1",
        "ssh_keys": ["operations"],
        "user_data": body["user_data"],
        "labels": {
            "managed-by": "milepost",
            "milepost-agent": super::AGENT.to_string(),
            "milepost-job": super::JOB.to_string(),
            "milepost-attempt": "1",
            KEY_LABEL: "k1CNTRL",
        },
        "firewalls": [{"firewall": 38}],
        "start_after_create": true,
    });
    assert_eq!(body, expected);
    assert_eq!(setting.clouds.tailscale.state().tokens_made, 1, "one token does for all");
}

#[tokio::test]
async fn each_thing_is_told_before_anything_else_is_begun() {
    let setting = Setting::new().await;
    let clouds = &setting.clouds;
    let tell = |output| {
        let servers_asked_for = clouds.hetzner.count("POST /servers");
        let looks = clouds.hetzner.count("GET /actions/{id}");
        let searches = clouds.tailscale.count("GET /api/v2/tailnet/{tailnet}/devices");
        match output {
            Output::ServerName(_) => assert!(clouds.hetzner.asked().is_empty()),
            Output::TailscaleKeyId(_) => assert_eq!(servers_asked_for, 0),
            Output::ServerId(_) => assert_eq!((servers_asked_for, looks), (1, 0)),
            Output::ServerIp(_) => assert_eq!(looks, 0),
            Output::TailscaleDeviceId(_) | Output::TailscaleIp(_) => assert_eq!(searches, 1),
        }
        Ok(())
    };
    setting.servers.create(&order(1), tell).await.unwrap();
}

#[tokio::test]
async fn nothing_is_begun_when_an_output_cannot_be_written() {
    let setting = Setting::new().await;
    let full = |_| Err(io::ErrorKind::StorageFull.into());
    let error = setting.servers.create(&order(1), full).await.unwrap_err();
    assert!(matches!(error, ServerError::Output(_)));
    assert!(setting.clouds.hetzner.asked().is_empty());
    assert!(setting.clouds.tailscale.asked().is_empty());
}

#[tokio::test]
async fn an_unknown_region_is_refused_before_anything_is_asked() {
    let setting = Setting::new().await;
    let mut order = order(1);
    order.region = "mars".to_owned();
    let error = setting.servers.create(&order, |_| Ok(())).await.unwrap_err();
    assert_eq!(error.class(), Class::Final);
    assert!(error.to_string().contains("eu-central, eu-north, eu-west, us-east, us-west"));
    assert!(setting.clouds.hetzner.asked().is_empty());
    assert!(setting.clouds.tailscale.asked().is_empty());
}

#[tokio::test]
async fn asking_again_takes_the_server_that_is_there() {
    let setting = Setting::new().await;
    let first = setting.created(1).await;
    let again = setting.created(1).await;
    assert_eq!(first, again);
    assert_eq!(setting.made(), 1);
    assert_eq!(setting.clouds.tailscale.state().made.len(), 1, "no key is made for nothing");
    let other = setting.created(2).await;
    assert_ne!(id_of(&first), id_of(&other), "another attempt has another server");
}

#[tokio::test]
async fn a_name_that_was_just_taken_leads_to_adoption_once_it_is_made() {
    let setting = Setting::new().await;
    setting.clouds.hetzner.state().looks = 3;
    let broken = Fault::Refuse(refusal(403, "forbidden", "no"));
    setting.clouds.hetzner.fail_each("GET /actions/{id}", broken);
    let (first, _) = setting.create(1).await;
    setting.clouds.hetzner.heal();
    // The server is not seen at first: somebody else makes it at this moment.
    let unseen = Fault::Refuse(Reply::new(200, no_servers()));
    setting.clouds.hetzner.fail_next("GET /servers", unseen);
    let looks = setting.clouds.hetzner.count("GET /actions/{id}");
    let told = setting.created(1).await;
    assert_eq!(id_of(&told), id_of(&first));
    assert_eq!(setting.made(), 1);
    let looked = setting.clouds.hetzner.count("GET /actions/{id}") - looks;
    assert_eq!(looked, 6, "its making and its start are waited for");
    assert_eq!(setting.clouds.tailscale.state().made.len(), 2);
    assert!(setting.clouds.tailscale.state().keys.is_empty(), "the key nobody uses is gone");
}

#[tokio::test]
async fn a_name_that_is_taken_and_never_seen_is_given_up() {
    let setting = Setting::new().await;
    let taken = Fault::Refuse(refusal(409, "uniqueness_error", "server name is already used"));
    setting.clouds.hetzner.fail_each("POST /servers", taken);
    let error = setting.refused(1).await;
    assert!(words(&error).contains("uniqueness_error (409): server name is already used"));
    assert!(setting.clouds.leftovers().is_empty());
}

#[tokio::test]
async fn a_server_with_other_labels_is_left_alone() {
    for (label, value) in [
        ("managed-by", "terraform"),
        ("milepost-agent", "00000000-0000-0000-0000-000000000001"),
        ("milepost-job", "00000000-0000-0000-0000-000000000001"),
        ("milepost-attempt", "2"),
    ] {
        for is_seen in [true, false] {
            let setting = Setting::new().await;
            let mut labels = json!(identity(1).labels());
            labels[label] = value.into();
            let id = setting.clouds.hetzner.state().add(&identity(1).name(), &labels);
            if !is_seen {
                let unseen = Fault::Refuse(Reply::new(200, no_servers()));
                setting.clouds.hetzner.fail_next("GET /servers", unseen);
            }
            let error = setting.refused(1).await;
            assert_eq!(error.class(), Class::Final);
            assert!(matches!(&error, ServerError::Foreign { labels, .. } if labels == &[label]));
            assert_eq!(setting.clouds.leftovers(), [format!("server {id}")]);
            assert_eq!(setting.clouds.hetzner.count("DELETE /servers/{id}"), 0);
        }
    }
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_server() {
    for fault in [
        Fault::CutAfter,
        Fault::Garble,
        Fault::RefuseAfter(refusal(502, "bad_gateway", "no")),
        Fault::RefuseAfter(refusal(504, "timeout", "no")),
    ] {
        let setting = Setting::new().await;
        setting.clouds.hetzner.fail_next("POST /servers", fault.clone());
        let told = setting.created(1).await;
        assert_eq!(names(&told), OUTPUTS, "{fault:?}");
        assert_eq!(setting.made(), 1, "{fault:?}");
        assert_eq!(setting.clouds.hetzner.count("POST /servers"), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn the_server_is_looked_for_before_it_is_asked_for_again() {
    for fault in [Fault::CutBefore, Fault::Hang] {
        let setting = Setting::new().await;
        setting.clouds.hetzner.fail_next("POST /servers", fault);
        setting.created(1).await;
        let asked = setting.clouds.hetzner.asked();
        let kinds: Vec<_> = asked.iter().map(|asked| asked.kind.as_str()).take(4).collect();
        assert_eq!(kinds, ["GET /servers", "POST /servers", "GET /servers", "POST /servers"]);
        assert_eq!(setting.made(), 1);
    }
}

#[tokio::test]
async fn a_key_whose_making_was_not_answered_is_deleted() {
    let setting = Setting::new().await;
    let kind = "POST /api/v2/tailnet/{tailnet}/keys";
    setting.clouds.tailscale.fail_next(kind, Fault::CutAfter);
    setting.created(1).await;
    let tailscale = setting.clouds.tailscale.state();
    assert_eq!(tailscale.made.len(), 2);
    assert!(tailscale.keys.is_empty(), "one was used, the other deleted");
}

#[tokio::test]
async fn a_server_whose_making_fails_can_be_undone() {
    let setting = Setting::new().await;
    setting.clouds.hetzner.state().making_fails = Some(("placement_error", "no room"));
    let (told, result) = setting.create(1).await;
    let error = result.unwrap_err();
    assert_eq!(error.class(), Class::Retryable);
    assert!(words(&error).contains("placement_error: no room"), "{}", words(&error));
    assert_eq!(names(&told), OUTPUTS[..4]);
    setting.undo(id_of(&told)).await;
    assert!(setting.clouds.leftovers().is_empty());
}

#[tokio::test]
async fn an_action_that_never_ends_is_given_up() {
    let setting = Setting::new().await;
    setting.clouds.hetzner.state().looks = u32::MAX;
    let error = setting.refused(1).await;
    assert_eq!(error.class(), Class::Retryable);
    assert!(words(&error).contains("is still running after 300 s"), "{}", words(&error));
}

#[tokio::test]
async fn a_server_that_never_joins_fails_and_leaves_what_undoes_it() {
    let setting = Setting::new().await;
    setting.clouds.tailscale.state().nobody_joins = true;
    let (told, result) = setting.create(1).await;
    let error = result.unwrap_err();
    assert_eq!(error.class(), Class::Retryable);
    let waited = format!("has not joined the tailnet after {} s", ENROL_TIMEOUT.as_secs());
    assert!(error.to_string().ends_with(&waited), "{error}");
    assert_eq!(names(&told), OUTPUTS[..4]);
    assert_eq!(setting.clouds.leftovers().len(), 2, "a server and its unused key");
    setting.undo(id_of(&told)).await;
    assert!(setting.clouds.leftovers().is_empty());
}

#[tokio::test]
async fn a_machine_that_only_says_it_is_the_server_is_not_taken_for_it() {
    let setting = Setting::new().await;
    setting.clouds.tailscale.state().nobody_joins = true;
    let impostor = setting.clouds.tailscale.state().add_device(&identity(1).name(), &json!([]));
    assert!(matches!(setting.refused(1).await, ServerError::NotEnrolled { .. }));
    setting.undo_attempt(1).await;
    assert_eq!(setting.clouds.leftovers(), [format!("device {impostor}")]);
}

#[tokio::test]
async fn two_that_make_the_same_server_make_one() {
    let setting = Setting::new().await;
    let (one, two) = tokio::join!(setting.create(1), setting.create(1));
    one.1.unwrap();
    two.1.unwrap();
    assert_eq!(id_of(&one.0), id_of(&two.0));
    assert_eq!(setting.made(), 1);
    setting.undo_attempt(1).await;
    assert!(setting.clouds.leftovers().is_empty());
}

/// Fault placements tried.
const PLACEMENTS: u64 = 200;

/// How often a workflow asks for its server before it gives up.
const RUNS: u32 = 3;

#[tokio::test]
async fn whatever_goes_wrong_an_attempt_has_one_server_and_in_the_end_none() {
    let mut made = 0;
    for seed in 0..PLACEMENTS {
        let setting = Setting::new().await;
        // Unique names are a second line of defence: looking first must do without.
        setting.clouds.hetzner.state().names_are_unique = seed % 2 == 0;
        let mut random = Random(seed);
        let mut placed = Vec::new();
        for _ in 0..=random.below(3) {
            let (number, fault) = (random.below(14), random.fault());
            placed.push(format!("{number}: {fault:?}"));
            match random.below(3) {
                0 => setting.clouds.tailscale.fail_number(number, fault),
                _ => setting.clouds.hetzner.fail_number(number, fault),
            }
        }
        let what = format!("seed {seed}: {placed:?}");
        for _ in 0..RUNS {
            let (told, result) = setting.create(1).await;
            assert!(setting.made() <= 1, "{what}");
            let Err(error) = result else {
                assert!(told.contains(&Output::ServerId(id_of(&told))));
                break;
            };
            assert_eq!(error.class(), Class::Retryable, "{what}: {}", words(&error));
        }
        let asked = setting.clouds.hetzner.asked();
        for pair in asked.windows(2).filter(|pair| pair[1].kind == "POST /servers") {
            assert_eq!(pair[0].kind, "GET /servers", "{what}");
        }
        made += setting.made();
        while setting.servers.destroy(&super::destroy::undo_of(attempt_id(1))).await.is_err() {}
        assert_eq!(setting.clouds.leftovers(), Vec::<String>::new(), "{what}");
    }
    assert_eq!(made as u64, PLACEMENTS, "each was made in the end");
}

/// Pseudo-random numbers that are the same at every run (`SplitMix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn fault(&mut self) -> Fault {
        match self.below(8) {
            0 | 1 => Fault::CutAfter,
            2 | 3 => Fault::CutBefore,
            4 => Fault::Garble,
            5 => Fault::RefuseAfter(refusal(502, "bad_gateway", "no")),
            6 => Fault::Refuse(refusal(503, "maintenance", "no")),
            _ => Fault::Refuse(refusal(429, "rate_limit_exceeded", "no").header("retry-after", 3)),
        }
    }
}
