//! Events for containerd, in the order things happened.
//!
//! One queue, worked off strictly in order: an event waits for the one before it, even while containerd is being restarted. An event that cannot be
//! delivered in time is logged and dropped; the pod never waits for it.

use std::time::Duration;

use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use ttrpc::context::with_duration;

use crate::process::now;

/// Events that wait for containerd.
const QUEUE: usize = 1024;
/// One delivery.
const DELIVERY: Duration = Duration::from_secs(5);
/// Between two attempts. containerd does not tell when it is back.
const PAUSE: Duration = Duration::from_secs(1);
/// A restart of containerd takes a few seconds.
const ATTEMPTS: u32 = 10;
/// How long the end of the shim waits for the last events.
const FLUSH: Duration = Duration::from_secs(3);

/// An event and its topic.
pub(crate) trait Event: MessageFull {
    /// Where containerd files it.
    const TOPIC: &'static str;
}

macro_rules! events {
    ($($message:ident: $topic:ident),* $(,)?) => { $(impl Event for task::$message { const TOPIC: &'static str = topics::$topic; })* };
}

events! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC,
}

/// Publishes the events of one namespace.
pub(crate) struct Events {
    queue: mpsc::Sender<Envelope>,
    namespace: String,
}

impl Events {
    /// Connects to containerd, and begins to deliver to `namespace`.
    pub(crate) async fn connect(address: String, namespace: String) -> ttrpc::Result<(Self, Delivery)> {
        let client = connect(&address).await?;
        let (queue, receiver) = mpsc::channel(QUEUE);
        let (end, ended) = mpsc::channel(1);
        let delivery = Delivery { task: tokio::spawn(deliver(address, client, receiver, ended)), end };
        Ok((Self { queue, namespace }, delivery))
    }

    /// Queues an event.
    pub(crate) fn publish<E: Event>(&self, event: E) {
        let envelope = Envelope {
            timestamp: MessageField::some(now()),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.into(),
            event: MessageField::some(Any {
                type_url: E::descriptor().full_name().into(),
                value: event.write_to_bytes().unwrap_or_default(),
                ..Default::default()
            }),
            ..Default::default()
        };
        if self.queue.try_send(envelope).is_err() {
            tracing::warn!(topic = E::TOPIC, "too many events wait for containerd; this one is lost");
        }
    }
}

/// The delivery of queued events.
pub(crate) struct Delivery {
    task: JoinHandle<()>,
    end: mpsc::Sender<()>,
}

impl Delivery {
    /// Waits until everything queued so far is delivered, or given up.
    pub(crate) async fn finish(self) {
        let _ = self.end.try_send(());
        if tokio::time::timeout(FLUSH, self.task).await.is_err() {
            tracing::warn!("containerd did not take the last events");
        }
    }
}

async fn connect(address: &str) -> ttrpc::Result<EventsClient> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    Ok(EventsClient::new(Client::connect(&format!("unix://{path}")).await?))
}

async fn deliver(address: String, client: EventsClient, mut queue: mpsc::Receiver<Envelope>, mut end: mpsc::Receiver<()>) {
    let mut client = Some(client);
    loop {
        let envelope = tokio::select! {
            biased;
            envelope = queue.recv() => envelope,
            _ = end.recv() => return,
        };
        let Some(envelope) = envelope else { return };
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        if !deliver_one(&address, &mut client, &request).await {
            tracing::warn!(topic, "containerd did not take an event; it is lost");
        }
    }
}

async fn deliver_one(address: &str, client: &mut Option<EventsClient>, request: &ForwardRequest) -> bool {
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        if client.is_none() {
            *client = connect(address).await.ok();
        }
        let Some(connected) = client.as_ref() else { continue };
        match connected.forward(with_duration(DELIVERY), request).await {
            Ok(_) => return true,
            Err(error) => {
                tracing::debug!(%error, attempt, "event not delivered");
                *client = None;
            }
        }
    }
    false
}
