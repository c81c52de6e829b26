//! `POST /api/webhooks/github`.

use jiff::Timestamp;
use milepost::app::Clock;
use milepost::intake::Redactor;
use milepost::intake::github::{IntakeError, Rules, Secret, verify};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Server, sql, wait_until};

const PATH: &str = "/api/webhooks/github";

fn started(job: &str) -> Value {
    json!({"job_id": job, "status": "provisioning"})
}

fn step(job: &str, step: &str) -> Value {
    json!({"job_id": job, "status": "provisioning", "step": step})
}

fn done(job: &str) -> Value {
    json!({
        "job_id": job, "status": "running",
        "server_id": "42", "server_ip": "192.0.2.7", "tailscale_ip": "100.64.0.7",
    })
}

fn heartbeat(job: &str) -> Value {
    json!({"job_id": job, "type": "heartbeat"})
}

/// Posts a callback that is taken and applied; returns where it stands.
async fn applied(client: &Client, body: &Value) -> u64 {
    let (status, answer) = client.callback(body).await;
    let position = answer["position"].as_u64().unwrap_or_default();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer, json!({"received": true, "applied": true, "position": position}));
    position
}

/// Posts a callback that is taken and not applied; returns where it stands.
async fn kept(client: &Client, body: &Value, reason: &str) -> u64 {
    let (status, answer) = client.callback(body).await;
    let position = answer["position"].as_u64().unwrap_or_default();
    assert_eq!(status, 200, "{answer}");
    let expected =
        json!({"received": true, "applied": false, "position": position, "reason": reason});
    assert_eq!(answer, expected);
    position
}

/// The event at a position.
async fn event(client: &Client, position: u64) -> Value {
    let page = client.read(&format!("/api/events?after={}&limit=1", position - 1)).await;
    page["events"][0].clone()
}

async fn head(client: &Client) -> u64 {
    client.read("/api/events?limit=0").await["head"].as_u64().unwrap()
}

fn problem(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let kind = body["type"].as_str().unwrap().strip_prefix("urn:milepost:problem:").unwrap();
    kind.to_owned()
}

/// A body of just so many bytes.
fn body_of(bytes: usize) -> String {
    let shell = json!({"job_id": "x", "type": "heartbeat", "padding": ""}).to_string();
    let padding = "p".repeat(bytes - shell.len());
    json!({"job_id": "x", "type": "heartbeat", "padding": padding}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_callback_becomes_an_event_and_a_state() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let (status, answer) = client
        .callback(&json!({"job_id": job, "status": "provisioning", "step": "vm_created"}))
        .await;
    assert_eq!((status.as_u16(), &answer["applied"]), (200, &json!(true)), "{answer}");
    let position = answer["position"].as_u64().unwrap();
    let events = client.events().await;
    assert_eq!(events[position as usize - 1]["type"], "ProvisioningStepRecorded");
    let instance = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(instance["instance"]["current_step"], "vm_created");
    assert_eq!(instance["steps"][2]["status"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_becomes_its_event() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let mut body = started(&job);
    body["workflow_run_id"] = 9_182_736_455_u64.into();
    body["something_new"] = json!({"kept": [1, 2]});
    let position = applied(&client, &body).await;
    let recorded = event(&client, position).await;
    assert_eq!(recorded["type"], "ProvisioningStarted");
    assert_eq!(recorded["data"]["workflow_run_id"], "9182736455");
    // What was signed is kept to the byte, unknown fields with it.
    assert_eq!(recorded["metadata"]["body"], body.to_string());
    assert_eq!(
        recorded["metadata"]["signature"],
        server.secret().sign(body.to_string().as_bytes())
    );
    for (body, expected) in [
        (heartbeat(&job), "HeartbeatRecorded"),
        (step(&job, "vm_created"), "ProvisioningStepRecorded"),
        (step(&job, "a_step_nobody_knows"), "ProvisioningStepRecorded"),
        (done(&job), "JobSucceeded"),
    ] {
        let position = applied(&client, &body).await;
        assert_eq!(event(&client, position).await["type"], expected);
    }
    let (_, job) = client.job("liis").await;
    let failed = json!({"job_id": job, "status": "failed", "error": "no capacity"});
    let position = applied(&client, &failed).await;
    let recorded = event(&client, position).await;
    assert_eq!(recorded["type"], "JobFailed");
    assert_eq!(recorded["data"]["error_message"], "no capacity");
    assert_eq!(recorded["data"]["retry"]["attempt"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_callback_is_refused_and_not_recorded() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let before = head(&client).await;
    for (body, words) in [
        ("", "not a JSON object"),
        ("{", "not a JSON object"),
        ("nonsense", "not a JSON object"),
        ("[]", "it is an array"),
        ("\"text\"", "not a JSON object"),
        (r#"{"status":"running"}"#, "job_id is missing"),
        (r#"{"job_id":"","status":"running"}"#, "job_id is missing"),
        (r#"{"job_id":null,"status":"running"}"#, "job_id is missing"),
        (r#"{"job_id":["x"],"status":"running"}"#, "job_id must be a string"),
        (&json!({"job_id": job}).to_string(), "neither status nor type is given"),
        (&json!({"job_id": job, "type": "heartbeat", "attempt": 0}).to_string(), "attempt must be"),
        (
            &json!({"job_id": job, "type": "heartbeat", "delivery_id": "d".repeat(257)})
                .to_string(),
            "at most 256 bytes",
        ),
    ] {
        let answer = client.send(client.signed(body.to_owned())).await;
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(problem(&answer), "bad-request");
        assert!(answer.text().contains(words), "{body}: {}", answer.text());
    }
    assert_eq!(head(&client).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_signature_that_holds_nothing_is_recorded() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let before = head(&client).await;
    let body = started(&job).to_string();
    let secret = server.secret();
    let right = secret.sign(body.as_bytes());
    let other = Secret::new("another secret").unwrap();
    let now = Clock.now().as_second();
    let standard =
        |id: &str, at: i64| format!("v1,{}", secret.sign_standard(id, at, body.as_bytes()));
    let first = |value: String| vec![("x-signature", value)];
    let three = |id: &str, at: String, signature: String| {
        vec![
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", at),
            ("webhook-signature", signature),
        ]
    };
    for (headers, words) in [
        (vec![], "no signature is given"),
        (first(String::new()), "does not match"),
        (first("not hex".into()), "not hexadecimal"),
        (first(right[1..].into()), "not hexadecimal"),
        (first(right[2..].into()), "does not match"),
        (first(format!("sha512={right}")), "not hexadecimal"),
        (first(other.sign(body.as_bytes())), "does not match"),
        (first(secret.sign(b"another body")), "does not match"),
        (vec![("x-hub-signature-256", other.sign(body.as_bytes()))], "does not match"),
        (vec![("webhook-signature", standard("m1", now))], "is missing"),
        (three("", now.to_string(), standard("", now)), "is missing"),
        (three("m1", "today".into(), standard("m1", now)), "not a number"),
        (three("m1", (now - 310).to_string(), standard("m1", now - 310)), "too far from now"),
        (three("m1", (now + 310).to_string(), standard("m1", now + 310)), "too far from now"),
        (three("m2", now.to_string(), standard("m1", now)), "no signature matches"),
        (three("m1", (now - 1).to_string(), standard("m1", now)), "no signature matches"),
        (three("m1", now.to_string(), standard("m1", now).replace("v1,", "v2,")), "no signature"),
        (three("m1", now.to_string(), "v1,!!!".into()), "no signature matches"),
        (
            three("m1", now.to_string(), [&*"v1,AAAA ".repeat(8), &*standard("m1", now)].concat()),
            "no signature matches",
        ),
    ] {
        let mut request = client.unsigned(body.clone());
        for (name, value) in &headers {
            request = request.header(*name, value);
        }
        let answer = client.send(request).await;
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(problem(&answer), "unauthorised");
        assert!(answer.text().contains(words), "{headers:?}: {}", answer.text());
    }
    assert_eq!(head(&client).await, before);
    // A wrong Standard Webhooks signature is not made good by a right one of the other form.
    let both = client.signed(body.clone()).header("webhook-signature", "v1,AAAA");
    assert_eq!(client.send(both).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_forms_of_signature_are_taken() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let secret = server.secret();
    let names = ["first", "second", "third", "fourth"];
    for (name, header, prefix) in [
        (names[0], "x-signature", ""),
        (names[1], "X-Signature", "sha256="),
        (names[2], "x-hub-signature-256", "sha256="),
        (names[3], "x-hub-signature-256", ""),
    ] {
        let body = step(&job, name).to_string();
        let signature = format!("{prefix}{}", secret.sign(body.as_bytes()));
        let answer = client.send(client.unsigned(body).header(header, signature)).await;
        let (status, answer) = answer.into_json();
        assert_eq!((status.as_u16(), &answer["applied"]), (200, &json!(true)), "{name}");
        let recorded = event(&client, answer["position"].as_u64().unwrap()).await;
        assert_eq!(recorded["metadata"]["signature_form"], "x-signature");
        assert_eq!(recorded["metadata"]["key_id"], secret.key_id.as_str());
        assert_eq!(recorded["metadata"]["actor"], format!("workflow:{}", secret.key_id));
    }
    let now = Clock.now().as_second();
    // A number of seconds well within the allowance, on either side.
    for (id, at) in [("msg_1", now), ("msg_2", now - 280), ("msg_3", now + 280)] {
        let body = heartbeat(&job).to_string();
        let right = secret.sign_standard(id, at, body.as_bytes());
        let request = client
            .unsigned(body)
            .header("webhook-id", id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", format!("v1a,xyz v1,AAAA v1,{right}"));
        let (status, answer) = client.send(request).await.into_json();
        assert_eq!((status.as_u16(), &answer["applied"]), (200, &json!(true)), "{id}");
        let metadata = &event(&client, answer["position"].as_u64().unwrap()).await["metadata"];
        assert_eq!(metadata["signature_form"], "standard-webhooks");
        assert_eq!(metadata["delivery_id"], id);
        assert_eq!(metadata["signed_at"], at);
        assert_eq!(metadata["signature"], right);
    }
}

#[test]
fn several_secrets_are_in_force_at_once_and_the_first_form_can_be_ended() {
    let secrets = ["the old one", "whsec_dGhlIG5ldyBvbmU="].map(|it| Secret::new(it).unwrap());
    let body = br#"{"job_id":"x","type":"heartbeat"}"#;
    let now = Timestamp::from_second(1_772_442_000).unwrap();
    let check = |accept_x_signature: bool, headers: &[(&'static str, String)]| {
        let rules = Rules { secrets: secrets.to_vec(), accept_x_signature };
        let json = ("content-type", "application/json".to_owned());
        let headers = headers.iter().chain([&json]);
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        verify(&rules, &Redactor::new([]), &headers.collect(), body, now)
            .map(|verified| verified.evidence.key_id)
    };
    for secret in &secrets {
        let first = [("x-signature", secret.sign(body))];
        assert_eq!(check(true, &first), Ok(secret.key_id.clone()));
        assert!(matches!(check(false, &first), Err(IntakeError::Unauthorised(_))));
        let at = now.as_second();
        let standard = [
            ("webhook-id", "m".to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", format!("v1,{}", secret.sign_standard("m", at, body))),
        ];
        assert_eq!(check(true, &standard), Ok(secret.key_id.clone()));
        assert_eq!(check(false, &standard), Ok(secret.key_id.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_json_is_taken() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let body = heartbeat(&job).to_string();
    let signature = server.secret().sign(body.as_bytes());
    let send = async |media_type: Option<&str>| {
        let mut request = client.request(Method::POST, PATH).header("x-signature", &signature);
        if let Some(media_type) = media_type {
            request = request.header("content-type", media_type);
        }
        client.send(request.body(body.clone())).await
    };
    for wrong in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let answer = send(wrong).await;
        assert_eq!(
            (answer.status, problem(&answer)),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json".into())
        );
    }
    for right in ["application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(send(Some(right)).await.status, 200, "{right}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_at_most_64_kib() {
    let server = Server::start().await;
    let client = server.client();
    let fits = body_of(65_536);
    let answer = client.send(client.signed(fits)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let before = head(&client).await;
    // The size is enough: not a byte of the body is waited for, nor a signature.
    let request = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n");
    let answer = client.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\"type\":\"urn:milepost:problem:too-large\""), "{answer}");
    // Nobody says the size: the 65537th byte tells.
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Content-Type: application/json\r\n\r\n10001\r\n{}\r\n0\r\n\r\n",
        body_of(65_537)
    );
    let answer = client.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(head(&client).await, before);
    let body = body_of(65_536);
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Content-Type: application/json\r\nX-Signature: {}\r\n\r\n10000\r\n{body}\r\n0\r\n\r\n",
        server.secret().sign(body.as_bytes())
    );
    let answer = client.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_an_attempt_that_is_over_is_stopped_at_the_gate() {
    let server = Server::start().await;
    let client = server.client();
    let gate = async |body: &Value, reason: &str| {
        let before = head(&client).await;
        let (status, problem) = client.callback(body).await;
        assert_eq!(status, 409, "{problem}");
        assert_eq!(problem["type"], "urn:milepost:problem:attempt-over");
        assert_eq!(problem["reason"], reason);
        let position = problem["position"].as_u64().unwrap();
        if position > before {
            // Recorded all the same.
            let recorded = event(&client, position).await;
            assert_eq!(recorded["type"], "LateCallbackRecorded");
            assert_eq!(recorded["data"]["kind"], "started");
            assert_eq!(recorded["data"]["reason"], reason);
        }
        position
    };

    let (_, cancelled) = client.job("cancelled").await;
    client.post(&format!("/api/jobs/{cancelled}/cancel"), &json!({})).await;
    let first = gate(&started(&cancelled), "job_ended").await;
    // Started again, it must stop again; there is nothing to add.
    assert_eq!(gate(&started(&cancelled), "job_ended").await, first);

    let (_, succeeded) = client.job("succeeded").await;
    let first = applied(&client, &started(&succeeded)).await;
    applied(&client, &done(&succeeded)).await;
    // A repeat of the first *started*, which was applied then, must stop now.
    assert_eq!(gate(&started(&succeeded), "job_ended").await, first);

    let (_, superseded) = client.job("superseded").await;
    let failed = json!({"job_id": superseded, "status": "failed", "attempt": 1});
    applied(&client, &failed).await;
    let mut body = started(&superseded);
    body["attempt"] = 1.into();
    gate(&body, "attempt_superseded").await;
    // An attempt that never began is not over.
    body["attempt"] = 7.into();
    kept(&client, &body, "attempt_not_begun").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_late_is_kept_and_changes_nothing() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    applied(&client, &started(&job)).await;
    client.post(&format!("/api/jobs/{job}/cancel"), &json!({"reason": "by mistake"})).await;
    let before = client.read(&format!("/api/jobs/{job}")).await;
    for body in [
        heartbeat(&job),
        step(&job, "vm_created"),
        done(&job),
        json!({"job_id": job, "status": "failed", "server_id": "43"}),
        json!({"job_id": job, "status": "paused"}),
    ] {
        let position = kept(&client, &body, "job_ended").await;
        assert_eq!(event(&client, position).await["type"], "LateCallbackRecorded");
    }
    let late = client.read("/api/events?type=LateCallbackRecorded").await;
    // Servers that nobody else knows of are told, for they have to go.
    let servers: Vec<&Value> = late["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["data"]["server_id"])
        .collect();
    assert_eq!(servers, [&Value::Null, &Value::Null, &json!("42"), &json!("43"), &Value::Null]);
    let after = client.read(&format!("/api/jobs/{job}")).await;
    assert_eq!(after["status"], "cancelled");
    // But for what is to be undone: the two servers.
    let changed = |state: &Value| {
        let mut timeline = state["timeline"].clone();
        timeline[0]["compensation"]["resources"].take()
    };
    let named: Vec<Value> =
        changed(&after).as_array().unwrap().iter().map(|it| it["id"].clone()).collect();
    assert_eq!((named, changed(&before)), (vec![json!("42"), json!("43")], json!([])));
    let own = |state: &Value| {
        let mut timeline = state["timeline"].clone();
        timeline[0]["compensation"].take();
        timeline
    };
    assert_eq!(own(&after), own(&before));
    let instance = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(instance["instance"]["status"], "failed");
    assert_eq!(instance["agent"]["status"], "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_applied_is_kept_with_its_reason() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    kept(&client, &heartbeat(&job), "not_running").await;
    kept(&client, &json!({"job_id": job, "status": "paused"}), "unknown_status").await;
    kept(&client, &json!({"job_id": job, "type": "metrics"}), "unknown_status").await;
    let early = json!({"job_id": job, "status": "running", "attempt": 2});
    kept(&client, &early, "attempt_not_begun").await;
    assert_eq!(client.read(&format!("/api/jobs/{job}")).await["status"], "queued");
    // An unknown step is stored; progress stays where it was.
    applied(&client, &step(&job, "vm_created")).await;
    applied(&client, &step(&job, "coffee_made")).await;
    let instance = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(instance["instance"]["current_step"], "vm_created");
    assert_eq!(instance["steps"][2]["status"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_nobody_knows_is_no_error() {
    let server = Server::start().await;
    let client = server.client();
    let agent = client.agent("mari").await;
    let hostile = r#"'"; touch /tmp/pwn; "'"#;
    let long = "x".repeat(4_000);
    let nobody = "019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02";
    for job in [hostile, "$(reboot)", "../../etc/passwd", "\u{0}\n<b>", "🜁", &long, nobody, &agent]
    {
        // A run of an older server goes on: it is told so with a 200, even at the gate.
        let position = kept(&client, &started(job), "unknown_job").await;
        let recorded = event(&client, position).await;
        assert_eq!(recorded["type"], "CallbackRejected");
        let expected: String = job.chars().take(200).collect();
        assert_eq!(recorded["data"]["job_id"], expected);
        assert_eq!(recorded["data"]["kind"], "started");
        assert_eq!(recorded["data"]["reason"], "unknown_job");
        let head = head(&client).await;
        assert_eq!(kept(&client, &started(job), "unknown_job").await, position, "a repeat");
        assert_eq!(self::head(&client).await, head);
        let one = kept(&client, &heartbeat(job), "unknown_job").await;
        let other = kept(&client, &heartbeat(job), "unknown_job").await;
        assert!(one < other, "heartbeats are no repeats");
    }
    assert!(!std::path::Path::new("/tmp/pwn").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_answers_the_first_position_and_adds_nothing() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    // By attempt, kind and step where there is no delivery id.
    for body in [started(&job), step(&job, "vm_created"), step(&job, "ansible_started")] {
        let position = applied(&client, &body).await;
        assert_eq!(applied(&client, &body).await, position);
    }
    // By the delivery id where there is one, whatever else is said.
    let mut body = heartbeat(&job);
    body["delivery_id"] = "heartbeat-1".into();
    let position = applied(&client, &body).await;
    assert_eq!(applied(&client, &body).await, position);
    body["delivery_id"] = "heartbeat-2".into();
    assert!(applied(&client, &body).await > position);
    // The same step under another delivery id was sent twice, not repeated.
    let mut again = step(&job, "vm_created");
    again["delivery_id"] = "step-again".into();
    assert!(applied(&client, &again).await > position);
    assert!(applied(&client, &heartbeat(&job)).await < applied(&client, &heartbeat(&job)).await);
    // And of a body in the other form: `webhook-id` is the delivery id.
    let at = Clock.now().as_second();
    let text = step(&job, "ansible_complete").to_string();
    let signature = server.secret().sign_standard("msg_1", at, text.as_bytes());
    let mut positions = Vec::new();
    for _ in 0..2 {
        let request = client
            .unsigned(text.clone())
            .header("webhook-id", "msg_1")
            .header("webhook-timestamp", at)
            .header("webhook-signature", format!("v1,{signature}"));
        positions.push(client.send(request).await.into_json().1["position"].clone());
    }
    assert_eq!(positions[0], positions[1]);
    let finished = applied(&client, &done(&job)).await;
    assert_eq!(applied(&client, &done(&job)).await, finished);
    // A repeat of something that was not applied is not applied either.
    let late = kept(&client, &json!({"job_id": job, "status": "failed"}), "job_ended").await;
    assert_eq!(kept(&client, &json!({"job_id": job, "status": "failed"}), "job_ended").await, late);
    assert_eq!(head(&client).await, late);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_repeats_at_once_one_is_recorded() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let before = head(&client).await;
    let mut sent = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (client, body) = (client.clone(), step(&job, "vm_created"));
        sent.spawn(async move { applied(&client, &body).await });
    }
    assert_eq!(sent.join_all().await, [before + 1; 16]);
    assert_eq!(head(&client).await, before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_one_commit() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    applied(&client, &started(&job)).await;
    let position = applied(&client, &done(&job)).await;
    let events = client.read(&format!("/api/events?after={}", position - 1)).await;
    let told: Vec<(u64, &str)> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["position"].as_u64().unwrap(), event["type"].as_str().unwrap()))
        .collect();
    let expected = [
        (position, "JobSucceeded"),
        (position + 1, "InstanceStarted"),
        (position + 2, "AgentActivated"),
    ];
    assert_eq!(told, expected);
    let at = &events["events"][0]["recorded_at"];
    assert!(events["events"].as_array().unwrap().iter().all(|event| event["recorded_at"] == *at));
    let answer = client.read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(answer["agent"]["status"], "active");
    assert_eq!(answer["agent"]["active_job_id"], Value::Null);
    assert_eq!(answer["instance"]["status"], "running");
    assert_eq!(answer["instance"]["server_ip"], "192.0.2.7");
    assert!(answer["uptime"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn server_facts_count_all_three_or_none() {
    let server = Server::start().await;
    let client = server.client();
    let facts = json!({"server_id": 42, "server_ip": "192.0.2.7", "tailscale_ip": "100.64.0.7"});
    for (name, more, server_id, missing) in [
        ("inside", json!({"metadata": facts}), json!("42"), json!([])),
        ("none", json!({}), Value::Null, json!(["server_id", "server_ip", "tailscale_ip"])),
        ("partial", json!({"server_id": "42"}), Value::Null, json!(["server_ip", "tailscale_ip"])),
    ] {
        let (agent, job) = client.job(name).await;
        let mut body = json!({"job_id": job, "status": "running"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        applied(&client, &body).await;
        let answer = client.read(&format!("/api/agents/{agent}/instance")).await;
        assert_eq!(answer["instance"]["status"], "running", "{name}");
        assert_eq!(answer["instance"]["server_id"], server_id, "{name}");
        assert_eq!(answer["instance"]["missing"], missing, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_kept_plain_short_and_without_secrets() {
    let server = Server::start().await;
    let client = server.client();
    let secret = server.ready("callback_secret");
    let (_, job) = client.job("mari").await;
    let error = format!("{}\u{1b}[31mä\u{0}key {secret}\u{1b}[0m at the end", "ä".repeat(8_000));
    applied(&client, &json!({"job_id": job, "status": "failed", "error": error})).await;
    let answer = client.read(&format!("/api/jobs/{job}")).await;
    let kept = answer["error_message"].as_str().unwrap();
    assert!(kept.ends_with("äkey [redacted] at the end"), "{kept}");
    assert!((10_237..=10_240).contains(&kept.len()), "{}", kept.len());
    assert_eq!(answer["error_truncated"], true);
    // The body that held the secret is not kept; its hash proves what it was.
    let log = sql(&server.database_url()).await;
    let rows = log.query("SELECT header, body FROM event", &[]).await.unwrap();
    for row in rows {
        for column in 0..2 {
            let text = String::from_utf8(row.get(column)).unwrap();
            assert!(!text.contains(&secret), "{text}");
        }
    }
    let failed = client.read("/api/events?type=JobFailed").await;
    let metadata = &failed["events"][0]["metadata"];
    assert!(metadata.get("body").is_none() && metadata["body_sha256"].is_string(), "{metadata}");
}

/// Posts a callback until the log takes it; it answers 503 until then, and never anything else.
async fn until_taken(client: &Client, body: &Value) -> u64 {
    wait_until("the log takes the callback", || async {
        let answer = client.send(client.signed(body.to_string())).await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            return None;
        }
        let (status, answer) = answer.into_json();
        assert_eq!(status, 200, "{answer}");
        answer["position"].as_u64()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_refuses_is_a_503_and_the_repeat_is_recorded_once() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    applied(&client, &started(&job)).await;
    let before = head(&client).await;
    let owner = sql(&server.database_url()).await;
    owner.batch_execute("REVOKE UPDATE ON log_head FROM milepost_app").await.unwrap();
    for body in [step(&job, "vm_created"), done(&job), started("nobody knows it")] {
        let answer = client.send(client.signed(body.to_string())).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!((problem(&answer).as_str(), answer.header("retry-after")), ("unavailable", "2"));
    }
    assert_eq!(head(&client).await, before, "what can be read is read all the same");
    owner.batch_execute("GRANT UPDATE ON log_head TO milepost_app").await.unwrap();
    assert_eq!(until_taken(&client, &step(&job, "vm_created")).await, before + 1);
    assert_eq!(until_taken(&client, &done(&job)).await, before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_hangs_is_a_503_and_the_repeat_is_recorded_once() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    applied(&client, &started(&job)).await;
    let mut other = sql(&server.database_url()).await;
    let lock = other.transaction().await.unwrap();
    lock.batch_execute("SELECT FROM log_head FOR UPDATE").await.unwrap();
    let answer = client.send(client.signed(step(&job, "vm_created").to_string())).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    lock.rollback().await.unwrap();
    let position = until_taken(&client, &step(&job, "vm_created")).await;
    assert_eq!(applied(&client, &step(&job, "vm_created")).await, position);
    let recorded = client.read("/api/events?type=ProvisioningStepRecorded").await;
    assert_eq!(recorded["events"].as_array().unwrap().len(), 1);
}
