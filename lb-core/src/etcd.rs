//! What an etcd member says of itself, and what that means for a balancer. Versions 3.4 to 3.7.

use std::fmt;

/// A member's answer to `Maintenance/Status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub member_id: u64,
    /// The id of its cluster.
    pub cluster_id: u64,
    /// The id of the leader that it follows; 0: none.
    pub leader_id: u64,
    /// The version of the server, as `3.5.16`.
    pub version: String,
    /// The size of its database file, octets.
    pub db_size: u64,
    /// The last raft entry that it knows to be committed.
    pub raft_index: u64,
    /// The last raft entry that it has applied; 0: it does not say (before 3.4).
    pub raft_applied: u64,
    /// It has no vote and serves only serializable reads.
    pub learner: bool,
    /// The cluster's alarms: each member lists all of them.
    pub alarms: Vec<Alarm>,
}

/// A raised alarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The member it was raised for; 0: for no single one.
    pub member_id: u64,
    /// `NOSPACE`, `CORRUPT`, or what a later version adds.
    pub kind: String,
}

/// The alarm of a member whose quota is used up: the cluster takes no writes, reads go on.
pub const NOSPACE: &str = "NOSPACE";
/// The alarm of a member whose data differs from the others'.
pub const CORRUPT: &str = "CORRUPT";

/// All that have a meaning, as the metric `etcd_alarm` lists them.
pub const ALARMS: [&str; 2] = [NOSPACE, CORRUPT];

/// Why a member that answered is not to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Learner,
    /// Says as much of the cluster as of the member: a shared failure.
    NoLeader,
    Corrupt,
    /// Its cluster is not that of most members of the pool.
    Foreign {
        cluster_id: u64,
        pool: u64,
    },
    /// It has more entries yet to apply than `max_raft_lag`.
    Lagging {
        entries: u64,
        limit: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learner => {
                f.write_str("a learner: it serves clients once it is promoted to a voting member")
            }
            Self::NoLeader => f.write_str("no leader: the member is cut off from its cluster's quorum"),
            Self::Corrupt => f.write_str(
                "alarm CORRUPT: its data differs from the other members'; remove it and add it anew",
            ),
            Self::Foreign { cluster_id, pool } => write!(
                f,
                "a foreign cluster: its cluster id is {cluster_id:x}, that of the other backends {pool:x}; clients would \
                 see other data"
            ),
            Self::Lagging { entries, limit } => {
                write!(f, "{entries} raft entries behind, more than max_raft_lag = {limit}")
            }
        }
    }
}

impl Alarm {
    /// Reads an entry of Status' `errors`, where alarms stand as protobuf text: `memberID:123 alarm:NOSPACE `. `None` for
    /// other entries, as `etcdserver: no leader`.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| text.split_whitespace().find_map(|word| word.strip_prefix(name));
        let kind = value("alarm:")?.to_owned();
        let member_id = value("memberID:").map_or(Some(0), |id| id.parse().ok())?;
        Some(Self { member_id, kind })
    }
}

impl Member {
    /// Whether it leads its cluster.
    pub fn is_leader(&self) -> bool {
        self.leader_id != 0 && self.leader_id == self.member_id
    }

    /// An alarm of this kind is raised in its cluster.
    pub fn has_alarm(&self, kind: &str) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == kind)
    }

    /// The kinds of its cluster's alarms, each once.
    pub fn alarm_kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self.alarms.iter().map(|alarm| alarm.kind.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// What is wrong with it by its own word.
    ///
    /// # Errors
    /// The first fault.
    pub fn judge(&self) -> Result<(), Fault> {
        if self.learner {
            return Err(Fault::Learner);
        }
        // Raised for one member it says nothing against the others, who all list it.
        let names_it = |alarm: &Alarm| alarm.member_id == 0 || alarm.member_id == self.member_id;
        if self.alarms.iter().any(|alarm| alarm.kind == CORRUPT && names_it(alarm)) {
            return Err(Fault::Corrupt);
        }
        if self.leader_id == 0 {
            return Err(Fault::NoLeader);
        }
        Ok(())
    }

    /// Whether it belongs to the pool's cluster, see [`pool_cluster`].
    ///
    /// # Errors
    /// [`Fault::Foreign`].
    pub fn judge_cluster(&self, pool: Option<u64>) -> Result<(), Fault> {
        match pool {
            Some(pool) if pool != self.cluster_id => {
                Err(Fault::Foreign { cluster_id: self.cluster_id, pool })
            }
            _ => Ok(()),
        }
    }

    /// Whether it has applied what it should have: all that it knows to be committed, and all that was committed
    /// (`committed`) by the word of the others before it was asked.
    ///
    /// # Errors
    /// [`Fault::Lagging`].
    pub fn judge_lag(&self, committed: u64, limit: Option<u64>) -> Result<(), Fault> {
        let entries = self.raft_index.max(committed).saturating_sub(self.raft_applied);
        match limit {
            Some(limit) if self.raft_applied != 0 && entries > limit => {
                Err(Fault::Lagging { entries, limit })
            }
            _ => Ok(()),
        }
    }
}

/// The cluster that most members of a pool belong to; where two have as many, that of the member listed first. Members
/// whose cluster is not known do not count.
pub fn pool_cluster(ids: impl IntoIterator<Item = Option<u64>>) -> Option<u64> {
    let mut counts: Vec<(u64, usize)> = Vec::new();
    for id in ids.into_iter().flatten() {
        match counts.iter_mut().find(|(known, _)| *known == id) {
            Some((_, count)) => *count += 1,
            None => counts.push((id, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member {
            member_id: 7,
            cluster_id: 0xc1,
            leader_id: 8,
            raft_index: 100,
            raft_applied: 98,
            ..Member::default()
        }
    }

    fn alarm(member_id: u64, kind: &str) -> Vec<Alarm> {
        vec![Alarm { member_id, kind: kind.into() }]
    }

    #[test]
    fn alarms_are_read_from_protobuf_text() {
        assert_eq!(
            Alarm::parse("memberID:10276657743932975437 alarm:NOSPACE "),
            Some(alarm(10_276_657_743_932_975_437, "NOSPACE").remove(0))
        );
        assert_eq!(Alarm::parse("alarm:CORRUPT "), Some(alarm(0, "CORRUPT").remove(0)));
        assert_eq!(Alarm::parse("etcdserver: no leader"), None);
        assert_eq!(Alarm::parse("memberID:x alarm:CORRUPT"), None);
    }

    #[test]
    fn what_a_member_says_of_itself() {
        let judged = |change: &dyn Fn(&mut Member)| {
            let mut member = member();
            change(&mut member);
            member.judge().err()
        };
        assert_eq!(judged(&|_| {}), None);
        assert_eq!(judged(&|m| m.learner = true), Some(Fault::Learner));
        assert_eq!(judged(&|m| m.leader_id = 0), Some(Fault::NoLeader));
        assert_eq!(judged(&|m| m.alarms = alarm(7, CORRUPT)), Some(Fault::Corrupt));
        assert_eq!(judged(&|m| m.alarms = alarm(0, CORRUPT)), Some(Fault::Corrupt));
        assert_eq!(judged(&|m| m.alarms = alarm(8, CORRUPT)), None, "raised for another");
        assert_eq!(judged(&|m| m.alarms = alarm(7, NOSPACE)), None, "reads and deletes go on");
    }

    #[test]
    fn lag_counts_what_others_had_committed() {
        let member = member();
        assert_eq!(member.judge_lag(0, None), Ok(()));
        assert_eq!(member.judge_lag(0, Some(2)), Ok(()));
        assert_eq!(member.judge_lag(0, Some(1)), Err(Fault::Lagging { entries: 2, limit: 1 }));
        assert_eq!(member.judge_lag(6000, Some(5000)), Err(Fault::Lagging { entries: 5902, limit: 5000 }));
        let silent = Member { raft_applied: 0, ..member };
        assert_eq!(silent.judge_lag(6000, Some(5000)), Ok(()));
    }

    #[test]
    fn the_pools_cluster_is_the_most_common_one() {
        let table: [(&[Option<u64>], Option<u64>); 5] = [
            (&[], None),
            (&[None, None], None),
            (&[None, Some(2)], Some(2)),
            (&[Some(1), Some(2), Some(2)], Some(2)),
            (&[Some(1), None, Some(2)], Some(1)),
        ];
        for (ids, expected) in table {
            assert_eq!(pool_cluster(ids.iter().copied()), expected, "{ids:?}");
        }
        assert_eq!(member().judge_cluster(Some(2)), Err(Fault::Foreign { cluster_id: 0xc1, pool: 2 }));
        assert_eq!(member().judge_cluster(Some(0xc1)), Ok(()));
    }
}
