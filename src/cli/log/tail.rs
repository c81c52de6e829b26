//! `milepost log tail`: each event as it is recorded.

use tokio_stream::StreamExt as _;

use crate::cli::client::Server;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Begin after this `<epoch>-<position>` instead of now
    #[arg(long)]
    since: Option<String>,
    /// Only this stream
    #[arg(long)]
    stream: Option<String>,
    /// Only this type
    #[arg(long = "type")]
    kind: Option<String>,
    #[command(flatten)]
    server: Server,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { since, stream, kind, server } = args;
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in [("since", since), ("stream", stream), ("type", kind)] {
        query.extend_pairs(value.map(|value| (name, value)));
    }
    let client = server.client()?;
    let mut messages =
        std::pin::pin!(client.stream(format!("/api/events/stream?{}", query.finish())));
    while let Some(message) = messages.next().await {
        let message = message?;
        match message.event.as_str() {
            "recorded" => say!("{}", message.data)?,
            "reset" => eprintln!("milepost: the log began anew: {}", message.data),
            _ => {}
        }
    }
    Ok(())
}
