//! `POST /api/webhooks/github`.

use serde_json::json;

use crate::harness::Server;

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
