//! Processes (config.md, Process): scheduling, priorities, ids.

use std::ops::Range;

use oci_spec::runtime::{LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler};

/// What setresuid(2) and its like understand as "leave it as it is".
pub const NO_ID: u32 = u32::MAX;

/// The levels of `ioPriority.priority` (IOPRIO_NR_LEVELS of linux/ioprio.h).
pub const IO_PRIORITIES: Range<i64> = 0..8;

/// The `apparmorProfile` that confines nothing, which AppArmor has by itself.
pub const UNCONFINED: &str = "unconfined";

/// The AppArmor profile that a process is to be in, if it is to be in any.
#[must_use]
pub fn apparmor_profile(process: &Process) -> Option<&str> {
    let profile = process.apparmor_profile().as_deref();
    profile.filter(|profile| !profile.is_empty() && *profile != UNCONFINED)
}

/// `scheduler.policy` as SCHED_* of linux/sched.h.
#[must_use]
pub fn scheduler_policy(scheduler: &Scheduler) -> u32 {
    match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

/// `scheduler.flags` as SCHED_FLAG_* of linux/sched.h.
#[must_use]
pub fn scheduler_flags(scheduler: &Scheduler) -> u64 {
    scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    })
}

/// What sched_setattr(2) would not take: properties of `scheduler`, and what is wrong with each.
#[must_use]
pub fn scheduler_problems(scheduler: &Scheduler) -> Vec<(&'static str, String)> {
    use LinuxSchedulerPolicy::{
        SchedBatch, SchedDeadline, SchedFifo, SchedIso, SchedOther, SchedRr,
    };
    let policy = *scheduler.policy();
    let mut problems = Vec::new();
    let mut note = |part, problem: String| problems.push((part, problem));
    let nice = scheduler.nice().unwrap_or(0);
    let priority = scheduler.priority().unwrap_or(0);
    if policy == SchedIso {
        note("policy", "Linux has no SCHED_ISO".into());
    }
    if matches!(policy, SchedOther | SchedBatch) && !(-20..=19).contains(&nice) {
        note("nice", format!("{nice} is not between -20 and 19"));
    }
    if matches!(policy, SchedFifo | SchedRr) {
        if !(1..=99).contains(&priority) {
            note("priority", format!("{priority} is not between 1 and 99"));
        }
    } else if priority != 0 {
        note("priority", "is for SCHED_FIFO and SCHED_RR only".into());
    }
    let (runtime, deadline, period) = (
        scheduler.runtime().unwrap_or(0),
        scheduler.deadline().unwrap_or(0),
        scheduler.period().unwrap_or(0),
    );
    if policy != SchedDeadline {
        for (part, value) in [
            ("runtime", runtime),
            ("deadline", deadline),
            ("period", period),
        ] {
            if value != 0 {
                note(part, "is for SCHED_DEADLINE only".into());
            }
        }
    } else if !(1024 <= runtime && runtime <= deadline && (period == 0 || deadline <= period)) {
        // Linux, kernel/sched/deadline.c, __checkparam_dl.
        let problem = "needs 1024 <= runtime <= deadline <= period";
        note("deadline", problem.into());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Scheduler {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn policies_and_flags_have_the_numbers_of_the_kernel() {
        for (json, policy, flags) in [
            (r#"{"policy":"SCHED_OTHER"}"#, 0, 0),
            (
                r#"{"policy":"SCHED_RR","flags":["SCHED_RESET_ON_FORK","SCHED_FLAG_UTIL_CLAMP_MAX"]}"#,
                2,
                0x41,
            ),
            (
                r#"{"policy":"SCHED_DEADLINE","flags":["SCHED_FLAG_RECLAIM"]}"#,
                6,
                2,
            ),
        ] {
            let scheduler = scheduler(json);
            let found = (scheduler_policy(&scheduler), scheduler_flags(&scheduler));
            assert_eq!(found, (policy, flags), "{json}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (json, expected) in [
            (r#"{"policy":"SCHED_OTHER","nice":-20}"#, &[][..]),
            (r#"{"policy":"SCHED_BATCH","nice":20}"#, &["nice"]),
            (r#"{"policy":"SCHED_IDLE","nice":20}"#, &[]),
            (r#"{"policy":"SCHED_FIFO","priority":99}"#, &[]),
            (r#"{"policy":"SCHED_RR"}"#, &["priority"]),
            (
                r#"{"policy":"SCHED_ISO","priority":1}"#,
                &["policy", "priority"],
            ),
            (
                r#"{"policy":"SCHED_RR","priority":1,"runtime":1,"period":1}"#,
                &["runtime", "period"],
            ),
            (
                r#"{"policy":"SCHED_DEADLINE","runtime":1024,"deadline":1024}"#,
                &[],
            ),
            (
                r#"{"policy":"SCHED_DEADLINE","runtime":1024,"deadline":2048,"period":2047}"#,
                &["deadline"],
            ),
            (r#"{"policy":"SCHED_DEADLINE"}"#, &["deadline"]),
        ] {
            let problems = scheduler_problems(&scheduler(json));
            let parts: Vec<_> = problems.iter().map(|(part, _)| *part).collect();
            assert_eq!(parts, expected, "{json}");
        }
    }
}
