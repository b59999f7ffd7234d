//! On which of the host's processors the guest's run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vmm_api::{Failure, Limits};

/// Where each processor's thread may run; `None`: wherever this process may.
pub struct Affinity(Vec<Option<CpuSet>>);

impl Affinity {
    /// As the configuration says, if this host has such processors for this process.
    pub fn new(limits: &Limits) -> Result<Self, Failure> {
        if limits.affinity.iter().all(Vec::is_empty) {
            return Ok(Self(Vec::new()));
        }
        let allowed = sched_getaffinity(None)
            .map_err(|e| Failure::host(format!("cannot tell this host's processors: {e}")))?;
        let set = |cpus: &Vec<u32>| {
            let mut set = CpuSet::new();
            for &cpu in cpus {
                let index = cpu as usize;
                if index >= CpuSet::MAX_CPU || !allowed.is_set(index) {
                    return Err(Failure::configuration(format!(
                        "this process may not run on processor {cpu} of this host, or there is none: \
                         choose others for --cpu-affinity, of those that `nproc` and `taskset -p $$` \
                         show"
                    )));
                }
                set.set(index);
            }
            Ok((!cpus.is_empty()).then_some(set))
        };
        limits.affinity.iter().map(set).collect::<Result<_, _>>().map(Self)
    }

    /// Has the calling thread, which is processor `index`'s, run there.
    pub fn apply(&self, index: usize) -> Result<(), Failure> {
        let Some(Some(set)) = self.0.get(index) else { return Ok(()) };
        sched_setaffinity(None, set).map_err(|e| {
            Failure::host(format!("processor {index} of the guest cannot run where it is to: {e}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_go_where_they_are_to() {
        let allowed = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu)).unwrap();
        let affinity = vec![vec![], vec![cpu as u32]];
        let affinity = Affinity::new(&Limits { affinity, ..Limits::default() }).unwrap();
        let runs_on = |index: usize| {
            std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    affinity.apply(index).unwrap();
                    sched_getaffinity(None).unwrap()
                });
                thread.join().unwrap()
            })
        };
        for free in [0, 2] {
            assert_eq!(runs_on(free).count(), allowed.count());
        }
        let pinned = runs_on(1);
        assert!(pinned.count() == 1 && pinned.is_set(cpu));
    }

    #[test]
    fn processors_that_are_not_there_are_refused() {
        for cpu in [CpuSet::MAX_CPU as u32 - 1, CpuSet::MAX_CPU as u32, u32::MAX] {
            let limits = Limits { affinity: vec![vec![cpu]], ..Limits::default() };
            let failure = Affinity::new(&limits).err().unwrap();
            assert_eq!(failure.kind, vmm_api::FailureKind::Configuration);
        }
    }
}
