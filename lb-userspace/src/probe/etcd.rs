//! The check that knows etcd: its health service, a linearizable read, and what the member says of itself.

use lb_core::etcd::{Alarm, CORRUPT, Fault, Member, NOSPACE};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    Failure, Progress, Step,
    grpc::{self, Client},
    messages::{RangeRequest, RangeResponse, ServingStatus, StatusRequest, StatusResponse},
};

/// The key that is read, as `etcdctl endpoint health` has it; whether it exists does not matter.
const KEY: &[u8] = b"health";

/// Asks in the order health, range, status, the last two at once: a member without a leader says so in its status while its
/// read would wait for seconds.
pub(super) async fn ask(client: &Client, progress: &Progress) -> Result<(), Failure> {
    progress.set(Step::Health);
    match client.check().await {
        Ok(ServingStatus::Serving) => {}
        Ok(status) => return Err(Failure::new(grpc::not_serving(status))),
        // A learner refuses this, too; its status is still to be had.
        Err(status) if is_learner(&status) => {
            progress.set(Step::Status);
            let _ = status_of(client, progress).await?;
            return Err(Failure::new(Fault::Learner.to_string()));
        }
        // A proxy or an etcd without it: what follows says more anyway.
        Err(status) if status.code() == Code::Unimplemented => {}
        Err(status) => return Err(Failure::new(client.words(&status))),
    }

    progress.set(Step::Range);
    let begun = Instant::now();
    let read = async {
        let result = range(client).await;
        let took = begun.elapsed();
        progress.set(Step::Status);
        Ok((result, took))
    };
    let status = async {
        let member = status_of(client, progress).await;
        if let Ok(Some(Err(fault))) = &member {
            progress.fail_at(Step::Status, begun.elapsed());
            return Err(of(fault));
        }
        Ok(member)
    };
    let ((read, took), status) = tokio::try_join!(read, status)?;
    if let Err(refusal) = read
        && let Err(failure) = judge_read(client, &refusal, progress)
    {
        progress.fail_at(Step::Range, took);
        return Err(failure);
    }
    status.map(drop)
}

/// A linearizable read, which only a member with a leader and a quorum answers; a refusal by auth proves as much.
pub(super) async fn prove_quorum(client: &Client, progress: &Progress) -> Result<(), Failure> {
    match range(client).await {
        Ok(_) => Ok(()),
        Err(refusal) => judge_read(client, &refusal, progress),
    }
}

/// A linearizable read of at most one key, without its value: it writes no raft entry.
async fn range(client: &Client) -> Result<RangeResponse, Status> {
    let message = RangeRequest { key: KEY.to_vec(), limit: 1, keys_only: true };
    client.call("/etcdserverpb.KV/Range", message).await
}

/// What the member says of itself, and what that means; `None` where etcd's auth does not let us ask.
async fn status_of(client: &Client, progress: &Progress) -> Result<Option<Result<(), Fault>>, Failure> {
    let answer: StatusResponse = match client.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await
    {
        Ok(answer) => answer,
        Err(refusal) if is_permission(&refusal) || refusal.code() == Code::Unimplemented => {
            progress.remark(format!("etcd does not tell us its status: {}", client.words(&refusal)));
            return Ok(None);
        }
        Err(refusal) => return Err(Failure::new(client.words(&refusal))),
    };
    let member = member(answer);
    let verdict = member.judge();
    // What is the verdict already needs no remark.
    for kind in
        member.alarm_kinds().into_iter().filter(|kind| !(*kind == CORRUPT && verdict == Err(Fault::Corrupt)))
    {
        progress.remark(format!("alarm {kind}{}", alarm_words(kind)));
    }
    progress.learn(member);
    Ok(Some(verdict))
}

/// The read is made before it is asked who may read (etcd's `v3_server.go`), so that a refusal by auth proves the quorum.
fn judge_read(client: &Client, refusal: &Status, progress: &Progress) -> Result<(), Failure> {
    let words = client.words(refusal);
    if is_permission(refusal) {
        progress.remark(format!(
            "the linearizable read is refused by etcd's auth, which proves the quorum: {words}"
        ));
        return Ok(());
    }
    if is_learner(refusal) {
        return Err(Failure::new(Fault::Learner.to_string()));
    }
    if !grpc::is_answer(refusal) {
        return Err(Failure::new(words));
    }
    if words == "etcdserver: no leader" {
        return Err(of(&Fault::NoLeader));
    }
    Err(Failure::shared(format!("a linearizable read is refused: {words}")))
}

fn of(fault: &Fault) -> Failure {
    match fault {
        Fault::NoLeader => Failure::shared(fault.to_string()),
        Fault::Learner | Fault::Corrupt | Fault::Foreign { .. } | Fault::Lagging { .. } => {
            Failure::new(fault.to_string())
        }
    }
}

/// UNAVAILABLE in 3.4 and 3.5, FAILED_PRECONDITION from 3.6 on.
fn is_learner(status: &Status) -> bool {
    grpc::is_answer(status) && status.message().contains("not supported for learner")
}

/// etcd's auth says no: to the user, to the lack of one ("user name is empty"), or to a token.
fn is_permission(status: &Status) -> bool {
    let auth = ["user name is empty", "user name not found", "invalid auth token", "authentication failed"];
    grpc::is_answer(status)
        && (matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
            || auth.iter().any(|words| status.message().contains(words)))
}

fn alarm_words(kind: &str) -> &'static str {
    match kind {
        NOSPACE => {
            ": a member's quota is used up and the cluster takes no writes (compact, defragment, disarm)"
        }
        CORRUPT => ": a member's data differs from the others'",
        _ => "",
    }
}

fn member(answer: StatusResponse) -> Member {
    let header = answer.header.unwrap_or_default();
    Member {
        member_id: header.member_id,
        cluster_id: header.cluster_id,
        leader_id: answer.leader,
        version: answer.version,
        db_size: answer.db_size.try_into().unwrap_or(0),
        raft_index: answer.raft_index,
        raft_applied: answer.raft_applied_index,
        learner: answer.is_learner,
        alarms: answer.errors.iter().filter_map(|error| Alarm::parse(error)).collect(),
    }
}
