//! Sizes and limits as tables.

use super::*;
use serde_json::json;
use specification::usable_kbytes;

/// MiB of guest RAM, vCPUs, and what is written to which file.
type Sized = (u64, u8, Vec<(String, String)>);

fn sized(config: Value) -> Result<Sized, String> {
    sized_on(&crate::plan::tests::facts(), config)
}

fn sized_on(facts: &Facts<'_>, config: Value) -> Result<Sized, String> {
    let resources: LinuxResources =
        serde_json::from_value(config["resources"].clone()).unwrap_or_default();
    let annotations: HashMap<String, String> =
        serde_json::from_value(config["annotations"].clone()).unwrap_or_default();
    let mut ledger = Ledger::default();
    let asked = SizeRequest::of(&annotations, &config, &mut ledger);
    let size = size(Some(&resources), &asked, facts, &mut ledger);
    if let Some(refused) = ledger.refused() {
        return Err(refused.to_string());
    }
    let limits = size
        .limits
        .into_iter()
        .map(|limit| (limit.file.into_owned(), limit.value))
        .collect();
    Ok((size.memory / MIB, size.vcpus, limits))
}

#[test]
fn a_machine_has_room_for_more_than_its_limit() {
    let of = |resources: Value| sized(json!({ "resources": resources })).map(|size| size.0);
    for (resources, mib) in [
        (json!({}), 8192),
        (json!({"memory": {"limit": 128 << 20}}), 8192),
        (json!({"memory": {"limit": 8_u64 << 30}}), 8372),
        (json!({"memory": {"limit": i64::MAX}}), 16384),
        (json!({"unified": {"memory.max": "max"}}), 8192),
    ] {
        assert_eq!(of(resources.clone()), Ok(mib), "{resources}");
    }
}

#[test]
fn memory_follows_the_limit_where_there_is_no_room() {
    let facts = Facts {
        room: 0,
        ..crate::plan::tests::facts()
    };
    let of =
        |resources: Value| sized_on(&facts, json!({ "resources": resources })).map(|size| size.0);
    for (resources, mib) in [
        (json!({}), 512),
        (json!({"memory": {"limit": -1}}), 512),
        (json!({"memory": {"limit": 128 << 20}}), 180),
        (json!({"memory": {"limit": 16 << 20}}), 66),
        (json!({"memory": {"limit": i64::MAX}}), 16384),
        (json!({"memory": {"limit": 4_u64 << 30}}), 4210),
        (json!({"unified": {"memory.max": "134217728"}}), 180),
        (json!({"unified": {"memory.max": "max"}}), 512),
    ] {
        assert_eq!(of(resources.clone()), Ok(mib), "{resources}");
    }
    let small = of(json!({"memory": {"limit": 1 << 20}})).unwrap_err();
    assert!(
        small.starts_with("linux.resources.memory.limit: 1048576 bytes"),
        "{small}"
    );
    of(json!({"unified": {"memory.max": "lots"}})).unwrap_err();
    for limit in [LIMIT_MIN, LIMIT_MIN + 1, 512 * MIB, 1 << 40] {
        assert!(allowed(needed(limit)) >= limit, "{limit}");
        // What the guest's kernel may use is what a machine of that RAM has.
        let counted = needed(limit) / PAGES_PER_DESCRIPTOR * (PAGES_PER_DESCRIPTOR - 1) - 15 * MIB;
        let usable = usable_kbytes(limit) * KIB;
        assert!(usable.abs_diff(counted) < 64 * KIB, "{limit}: {usable}");
    }
}

#[test]
fn the_size_can_be_asked_for() {
    let annotated = |key: &str, value: &str| sized(json!({"annotations": {key: value}}));
    for (text, mib) in [
        ("134217728", 128),
        ("134217729", 130),
        ("131072K", 128),
        ("192M", 192),
        ("1G", 1024),
    ] {
        assert_eq!(annotated("dev.chiton.memory", text).unwrap().0, mib);
    }
    for text in [
        "",
        "M",
        "-1",
        "+5",
        "1T",
        "1.5G",
        "32M",
        "99999999999G",
        "17G",
    ] {
        let error = annotated("dev.chiton.memory", text).unwrap_err();
        assert!(
            error.starts_with("annotations[dev.chiton.memory]: "),
            "{error}"
        );
    }
    assert_eq!(annotated("dev.chiton.vcpus", "7").unwrap().1, 7);
    for text in ["", "0", "33", "two"] {
        annotated("dev.chiton.vcpus", text).unwrap_err();
    }

    let hardware = |config: Value| sized(json!({"vm": {"hwConfig": config}}));
    let (memory, vcpus, _) = hardware(json!({"memory": 256 << 20, "vcpus": 3})).unwrap();
    assert_eq!((memory, vcpus), (256, 3));
    hardware(json!({"vcpus": 0})).unwrap_err();
    hardware(json!({"memory": "much"})).unwrap_err();
    let both = |number: u64| {
        sized(
            json!({"annotations": {"dev.chiton.vcpus": "2"}, "vm": {"hwConfig": {"vcpus": number}},
            "resources": {"cpu": {"quota": 400_000}}}),
        )
    };
    assert_eq!(both(2).unwrap().1, 2);
    both(3).unwrap_err();

    let limited = |limit: u64| {
        sized(
            json!({"annotations": {"dev.chiton.memory": "256M"}, "resources": {"memory": {"limit": limit}}}),
        )
    };
    assert_eq!(limited(200 * MIB).unwrap().0, 256);
    let error = limited(256 * MIB).unwrap_err();
    assert!(
        error.contains("is too little for linux.resources.memory.limit"),
        "{error}"
    );
}

#[test]
fn the_host_cgroup_allows_the_machine_and_its_overhead() {
    for (machine, most) in [("512M", 512 + 2 + 384 + 64), ("4G", 4096 + 16 + 1024 + 64)] {
        let (_, _, limits) = sized(json!({"annotations": {"dev.chiton.memory": machine}})).unwrap();
        let expected = [
            ("memory.max", (most * MIB).to_string()),
            ("pids.max", "4096".to_owned()),
        ];
        assert_eq!(
            limits,
            expected.map(|(file, value)| (file.to_owned(), value))
        );
    }
    // Of a machine that has room for more, what its limit needs.
    let most = |annotations: Value| {
        let resources = json!({"memory": {"limit": 256 << 20}});
        let config = json!({"resources": resources, "annotations": annotations});
        sized(config).unwrap().2.remove(0)
    };
    let needed = needed(256 * MIB).next_multiple_of(GRANULE);
    let expected = needed + needed / 256 + needed / 1024 * 768 + 64 * MIB;
    let expected = ("memory.max".to_owned(), expected.to_string());
    assert_eq!(most(json!({})), expected);
    assert_eq!(most(json!({"dev.chiton.memory": "1G"})), expected);
}

#[test]
fn vcpus_follow_quota_and_cpus() {
    let of = |resources: Value| sized(json!({ "resources": resources })).map(|size| size.1);
    for (cpu, vcpus) in [
        (json!({}), 1),
        (json!({"quota": -1, "cpus": "0-1"}), 2),
        (json!({"quota": 50000}), 1),
        (json!({"quota": 150_000, "period": 100_000}), 2),
        (json!({"quota": 150_000, "cpus": "0-6"}), 2),
        (json!({"quota": 900_000, "cpus": "0-6"}), 7),
        (json!({"quota": 100_000, "period": 10000}), 10),
        (json!({"cpus": "0-63"}), 32),
    ] {
        assert_eq!(of(json!({ "cpu": cpu })), Ok(vcpus), "{cpu}");
    }
    for (unified, vcpus) in [
        (json!({"cpu.max": "max 100000"}), 1),
        (json!({"cpu.max": "250000"}), 3),
        (json!({"cpu.max": "250000 50000\n"}), 5),
        (json!({"cpuset.cpus": "1,3"}), 2),
    ] {
        assert_eq!(of(json!({ "unified": unified })), Ok(vcpus), "{unified}");
    }
    for bad in [
        json!({"cpu.max": "x"}),
        json!({"cpu.max": "1 0"}),
        json!({"cpuset.cpus": "all"}),
    ] {
        of(json!({ "unified": bad })).unwrap_err();
    }
}

#[test]
fn the_host_limits_the_machine_as_a_whole() {
    let resources = json!({"cpu": {"shares": 512, "quota": 50000, "burst": 7, "idle": 0, "cpus": "0", "mems": "0"},
        "blockIO": {"weight": 10}, "unified": {"cpu.weight": "5", "pids.max": "5", "cpuset.mems": "0"}});
    let (_, _, mut limits) = sized(json!({ "resources": resources })).unwrap();
    limits.truncate(limits.len() - 2);
    let expected = [
        ("cpu.idle", "0"),
        ("cpu.weight", "59"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "7"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("io.weight", "1"),
        ("cpu.weight", "5"),
        ("cpuset.mems", "0"),
    ];
    assert_eq!(
        limits,
        expected.map(|(file, value)| (file.to_owned(), value.to_owned()))
    );
}

#[test]
fn the_host_swaps_out_no_more_than_is_allowed() {
    let of = |resources: Value| {
        let (_, _, limits) = sized(json!({ "resources": resources })).unwrap();
        let mut limits = limits.into_iter();
        limits.find_map(|(file, value)| (file == SWAP_MAX).then_some(value))
    };
    let memory = |limit: i64, swap: i64| of(json!({"memory": {"limit": limit, "swap": swap}}));
    assert_eq!(memory(64 << 20, 96 << 20).unwrap(), (32 << 20).to_string());
    assert_eq!(memory(64 << 20, 64 << 20).unwrap(), "0");
    assert_eq!(memory(64 << 20, -1).unwrap(), "max");
    assert_eq!(memory(-1, 0).unwrap(), "max");
    assert_eq!(memory(64 << 20, 0), None);
    assert_eq!(of(json!({})), None);
    let unified = of(json!({"unified": {"memory.swap.max": "7"}}));
    assert_eq!(unified.unwrap(), "7");
}
