//! `milepost log rotate-key`: a new key for the log's checkpoints.

use super::Place;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let file = args.place.key_file();
    let path = file.path().display();
    anyhow::ensure!(
        !file.read()?.is_empty(),
        "{path} holds no key yet; the server makes one when it seals for the first time"
    );
    let key = file.add()?;
    say!("A new key is in {path}: {}", hex::encode(key.public()))?;
    say!("The server that seals takes it over within seconds, and records that it did.")?;
    Ok(())
}
