//! One request, from when it is due to what becomes of it.

use std::time::Duration;

use tokio::{sync::oneshot, time::timeout_at};

use crate::{
    Operation,
    client::Client,
    connection::{Connection, Patience, lost},
    failure::{Failure, Kind},
    payload::Key,
    site::Run,
};

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What is asked.
    pub operation: Operation,
    /// The key's number, for those that choose one.
    pub key: usize,
    /// When it is due, since the run's start.
    pub due: Duration,
    /// What it does while there is no connection.
    pub patience: Patience,
}

impl Request {
    /// Makes it, once, and counts what becomes of it.
    pub async fn make(self, run: &Run, connection: &Connection) {
        let limit = run.site.plan.timeout;
        let deadline = run.instant(self.due + limit);
        let mut used = None;
        let outcome = timeout_at(deadline.into(), async {
            let client = connection.client(self.patience).await?;
            used = Some((client.clone(), client.heard()));
            run.recorder().sent(self.due, run.now());
            self.ask(run, connection, &client).await
        })
        .await;
        let failure = match outcome {
            Ok(Ok(at)) => return run.recorder().answered(self.operation, self.due, at),
            Ok(Err(failure)) => failure,
            Err(_) => {
                let what = match used {
                    None => "no connection",
                    Some((client, heard)) => {
                        if client.heard() == heard {
                            client.give_up();
                        }
                        "no answer"
                    }
                };
                Failure::new(Kind::Timeout, format!("{what} within {limit:?}"))
            }
        };
        run.recorder().failed(self.operation, self.due, &failure);
    }

    /// When what was asked for was there.
    async fn ask(self, run: &Run, connection: &Connection, client: &Client) -> Result<Duration, Failure> {
        let site = &run.site;
        let key = Key::Shared(self.key);
        match self.operation {
            Operation::Get => {
                let before = site.truth().before(key);
                let answer = client.get(site.payload.key(key)).await?;
                let at = run.now();
                site.truth().got(key, before, answer.header, &answer.kvs).map_err(Failure::wrong)?;
                Ok(at)
            }
            Operation::Put => {
                let number = site.truth().begin_put();
                put(run, client, key, number).await.map(|(at, _)| at)
            }
            Operation::Watch => watch(run, connection, client).await,
        }
    }
}

/// Writes a key: when that was answered, and its revision.
async fn put(run: &Run, client: &Client, key: Key, number: u64) -> Result<(Duration, i64), Failure> {
    let site = &run.site;
    let before = site.truth().before(key);
    let answer = client.put(site.payload.key(key), site.payload.value(key, number)).await?;
    let at = run.now();
    let revision = site.truth().put_answered(key, number, before, answer.header).map_err(Failure::wrong)?;
    Ok((at, revision))
}

/// Writes the key that the connection watches, and waits for the answer and the event: when the event came.
async fn watch(run: &Run, connection: &Connection, client: &Client) -> Result<Duration, Failure> {
    let number = run.site.truth().begin_put();
    let (waiter, event) = oneshot::channel();
    connection.events().expect(number, waiter);
    let _forget = Forget { connection, number };
    let (_, revision) = put(run, client, connection.watched(), number).await?;
    if connection.events().answered(number, revision).is_some() {
        return Err(lost(revision));
    }
    let arrival = event.await.unwrap_or_else(|_| Err(Failure::wrong("an event that nobody waits for")))?;
    if arrival.revision != revision {
        return Err(Failure::wrong(format!(
            "a put of revision {revision} has an event of revision {}",
            arrival.revision
        )));
    }
    Ok(arrival.at)
}

/// Waits for an event no longer than its request lives.
struct Forget<'a> {
    connection: &'a Connection,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.connection.events().forget(self.number);
    }
}
