//! `linux.memoryPolicy`: from which memory nodes of the host the machine takes its memory, guest RAM included.

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};
use specification::CpuList;

use super::ledger::Ledger;
use crate::sys::MemoryPolicy;

/// Most memory nodes that Linux is built for (MAX_NUMNODES).
const NODES_MAX: u32 = 1024;

/// The policy, unless it is refused or there is none.
pub(super) fn memory_policy(
    policy: Option<&LinuxMemoryPolicy>,
    ledger: &mut Ledger,
) -> Option<MemoryPolicy> {
    use MemoryPolicyModeType as Mode;
    let policy = policy?;
    let list = policy.nodes().as_deref().filter(|list| !list.is_empty());
    let nodes = match list.map(|list| CpuList::parse(list).and_then(|list| list.mask(NODES_MAX))) {
        Some(None) => {
            ledger.refuse("linux.memoryPolicy.nodes", "is not a list of memory nodes");
            return None;
        }
        nodes => nodes.flatten().unwrap_or_default(),
    };
    // Numbers and rules of linux/mempolicy.h and set_mempolicy(2).
    let (mode, needs) = match policy.mode() {
        Mode::MpolDefault => (0, Some(false)),
        Mode::MpolPreferred => (1, None),
        Mode::MpolBind => (2, Some(true)),
        Mode::MpolInterleave => (3, Some(true)),
        Mode::MpolLocal => (4, Some(false)),
        Mode::MpolPreferredMany => (5, Some(true)),
        Mode::MpolWeightedInterleave => (6, Some(true)),
    };
    match needs {
        Some(false) if !nodes.is_empty() => {
            ledger.refuse("linux.memoryPolicy.nodes", "must be empty in this mode");
        }
        Some(true) if nodes.is_empty() => {
            ledger.refuse("linux.memoryPolicy.nodes", "must not be empty in this mode");
        }
        _ => {}
    }
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    Some(MemoryPolicy {
        mode: mode | flags,
        nodes,
    })
}
