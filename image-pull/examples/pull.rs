//! Pulls one image into a directory and prints where the time went. For comparing with other pullers; not for use: it accepts unsigned images.
//!
//! `pull <directory> <reference> [--insecure HOST:PORT]... [--key kbs:///r/t/t=FILE]...`

use std::collections::HashMap;
use std::sync::Arc;

use kata_cc_image_pull::{LayerStore, PullConfig, Puller, ResourceUri, Secret, SecretError, Secrets, SignaturePolicy};

struct Files(HashMap<String, String>);

#[async_trait::async_trait]
impl Secrets for Files {
    async fn resource(&self, uri: &ResourceUri) -> Result<Secret, SecretError> {
        let path = self.0.get(&uri.to_string()).ok_or("no such key was given")?;
        Ok(Secret::new(std::fs::read(path)?))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut plain, mut config, mut files) = (Vec::new(), PullConfig { require_digest: false, ..PullConfig::default() }, HashMap::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--insecure" => config.insecure_registries.extend(arguments.next()),
            "--key" => {
                let pair = arguments.next().unwrap_or_default();
                let (uri, file) = pair.split_once('=').ok_or("--key needs URI=FILE")?;
                files.insert(uri.to_owned(), file.to_owned());
            }
            _ => plain.push(argument),
        }
    }
    let [directory, reference] = plain.as_slice() else { return Err("usage: pull <directory> <reference> [options]".into()) };
    let store = LayerStore::open(directory)?;
    let puller = Puller::new(config, Arc::new(Files(files)))?;
    let image =
        puller.pull(&reference.parse()?, &SignaturePolicy::insecure_accept_anything(), &store, &|event| eprintln!("{event:?}")).await;
    match image {
        Ok(image) => {
            eprintln!("{:?}", image.timings);
            for layer in &image.layers {
                println!("{}", layer.path.display());
            }
            Ok(())
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            Err(text.into())
        }
    }
}
