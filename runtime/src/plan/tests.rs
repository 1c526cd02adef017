//! The plan as a table: at least one line for each property of the specification.

mod apparmor;
mod namespaces;
mod provided;
mod random;
mod selinux;

use super::ledger::Fate;
use super::*;

const PROCESS: &str = r#""user":{"uid":0,"gid":0},"cwd":"/","args":["sh"]"#;
const NAMESPACES: &str = r#"{"type":"uts"}"#;

/// A property, a value of it (of the whole array for what is inside one), and what becomes of it in a word.
struct Line(&'static str, &'static str, &'static str);

#[rustfmt::skip]
const TABLE: &[Line] = &[
    Line("annotations", r#"{"a":"b"}"#, "host"),
    Line("annotations", r#"{"dev.chiton.memory":"128M","dev.chiton.vcpus":"2"}"#, "host"),
    Line("annotations", r#"{"dev.chiton.memory":"much"}"#, "refused"),
    Line("annotations", r#"{"dev.chiton.volumes.privileges":"deny","dev.chiton.dax":"off"}"#, "host"),
    Line("annotations", r#"{"dev.chiton.core-scheduling":"on"}"#, "host"),
    Line("annotations", r#"{"dev.chiton.dax":"no"}"#, "refused"),
    Line("annotations", r#"{"dev.chiton.color":"red"}"#, "refused"),
    Line("domainname", r#""d""#, "guest"),
    Line("freebsd", r#"{"devices":[1]}"#, "refused"),
    Line("hooks.createContainer", r#"[{"path":"/x","args":["x"],"env":["A=B"],"timeout":1}]"#, "host"),
    Line("hooks.createRuntime", r#"[{"path":"x"}]"#, "refused"),
    Line("hooks.poststart", r#"[{"path":"/x","timeout":0}]"#, "refused"),
    Line("hooks.poststop", "[]", "nothing"),
    Line("hooks.prestart", r#"[{"path":"/x"}]"#, "host"),
    Line("hooks.startContainer", r#"[{"path":"/x"}]"#, "guest"),
    Line("hostname", r#""h""#, "guest"),
    Line("hostname", r#""""#, "nothing"),
    Line("linux.cgroupsPath", r#""/a/b""#, "both"),
    Line("linux.cgroupsPath", r#""/a/../b""#, "refused"),
    Line("linux.devices", r#"[{"path":"/dev/x","type":"c","major":1,"minor":3}]"#, "guest"),
    Line("linux.devices", r#"[{"path":"/dev/x","type":"p"}]"#, "guest"),
    Line("linux.devices", r#"[{"path":"/dev/x","type":"b","major":8,"minor":0}]"#, "both"),
    Line("linux.devices", r#"[{"path":"/dev/fuse","type":"u","major":10,"minor":229}]"#, "guest"),
    Line("linux.devices", r#"[{"path":"/dev/mem","type":"c","major":1,"minor":1}]"#, "refused"),
    Line("linux.gidMappings", r#"[{"containerID":0,"hostID":1,"size":1}]"#, "guest"),
    Line("linux.intelRdt", r#"{"closID":"x","l3CacheSchema":"L3:0=f","memBwSchema":"MB:0=70"}"#, "host"),
    Line("linux.intelRdt", r#"{"closID":"../x"}"#, "refused"),
    Line("linux.intelRdt", r#"{"memBwSchema":"L3:0=70"}"#, "refused"),
    Line("linux.intelRdt", r#"{"schemata":["L3:0=f\nMB:0=1"]}"#, "refused"),
    Line("linux.intelRdt", r#"{"enableCMT":true}"#, "refused"),
    Line("linux.maskedPaths", r#"["/proc/kcore"]"#, "guest"),
    Line("linux.memoryPolicy", r#"{"mode":"MPOL_BIND","nodes":"0"}"#, "host"),
    Line("linux.memoryPolicy", r#"{"mode":"MPOL_BIND"}"#, "refused"),
    Line("linux.memoryPolicy", r#"{"mode":"MPOL_LOCAL","nodes":"0"}"#, "refused"),
    Line("linux.memoryPolicy", r#"{"mode":"MPOL_INTERLEAVE","nodes":"0-9999"}"#, "refused"),
    Line("linux.memoryPolicy", r#"{"mode":"MPOL_PREFERRED","flags":["MPOL_F_STATIC_NODES"],"nodes":"0"}"#, "host"),
    Line("linux.mountLabel", r#""u:object_r:file_t:s0""#, "host"),
    Line("linux.namespaces.type", r#"[{"type":"pid"},{"type":"mount"}]"#, "guest"),
    Line("linux.namespaces.type", r#"[{"type":"network"}]"#, "both"),
    Line("linux.namespaces.type", r#"[{"type":"ipc"},{"type":"uts"},{"type":"cgroup"}]"#, "guest"),
    Line("linux.namespaces.type", r#"[{"type":"time"}]"#, "guest"),
    Line("linux.namespaces.type", r#"[{"type":"pid"},{"type":"pid"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"network","path":"/run/netns/x"}]"#, "host"),
    Line("linux.namespaces.path", r#"[{"type":"pid","path":""}]"#, "nothing"),
    Line("linux.namespaces.path", r#"[{"type":"pid","path":"/proc/1/ns/pid"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"ipc","path":"/proc/1/ns/ipc"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"uts","path":"/proc/1/ns/uts"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"mount","path":"/proc/1/ns/mnt"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"user","path":"/proc/1/ns/user"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"time","path":"/proc/1/ns/time"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"cgroup","path":"/proc/1/ns/cgroup"}]"#, "refused"),
    Line("linux.namespaces.path", r#"[{"type":"ipc","path":"/proc/7/ns/ipc"}]"#, "guest"),
    Line("linux.namespaces.path", r#"[{"type":"network","path":"/missing"}]"#, "refused"),
    Line("linux.netDevices", r#"{"eth0":{"name":"e"},"eth1":{},"e":{"name":"eth0"}}"#, "both"),
    Line("linux.netDevices", r#"{"eth0":{"name":"e"},"e":{}}"#, "refused"),
    Line("linux.netDevices", r#"{"eth0":{"name":"a/b"}}"#, "refused"),
    Line("linux.netDevices", r#"{"eth0":{"name":"eth%d"}}"#, "refused"),
    Line("linux.netDevices", r#"{"eth0":{"name":"chiton3"}}"#, "refused"),
    Line("linux.netDevices", r#"{"a name of 16 by":{}}"#, "refused"),
    Line("linux.netDevices", r#"{"0":{},"1":{},"2":{},"3":{},"4":{},"5":{},"6":{},"7":{},"8":{}}"#, "refused"),
    Line("linux.personality", r#"{"domain":"LINUX"}"#, "guest"),
    Line("linux.personality", r#"{"domain":"LINUX32","flags":["X"]}"#, "refused"),
    Line("linux.readonlyPaths", r#"["/proc/sys"]"#, "guest"),
    Line("linux.resources.blockIO", r#"{"weight":10}"#, "host"),
    Line("linux.resources.blockIO", r#"{"weight":0,"throttleReadBpsDevice":[]}"#, "host"),
    Line("linux.resources.blockIO", r#"{"weight":9}"#, "refused"),
    Line("linux.resources.blockIO", r#"{"leafWeight":10}"#, "refused"),
    Line("linux.resources.blockIO", r#"{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}]}"#, "host"),
    Line("linux.resources.blockIO", r#"{"weightDevice":[{"major":8,"minor":-1,"weight":50}]}"#, "refused"),
    Line("linux.resources.cpu.burst", "1000", "both"),
    Line("linux.resources.cpu.cpus", r#""0-1""#, "host"),
    Line("linux.resources.cpu.cpus", r#""all""#, "refused"),
    Line("linux.resources.cpu.idle", "1", "both"),
    Line("linux.resources.cpu.idle", "2", "refused"),
    Line("linux.resources.cpu.mems", r#""0""#, "host"),
    Line("linux.resources.cpu.mems", r#""x""#, "refused"),
    Line("linux.resources.cpu.period", "100000", "both"),
    Line("linux.resources.cpu.period", "999", "refused"),
    Line("linux.resources.cpu.quota", "100000", "both"),
    Line("linux.resources.cpu.quota", "999", "refused"),
    Line("linux.resources.cpu.quota", "-1", "both"),
    Line("linux.resources.cpu.realtimePeriod", "1000", "refused"),
    Line("linux.resources.cpu.realtimeRuntime", "1000", "refused"),
    Line("linux.resources.cpu.realtimeRuntime", "0", "nothing"),
    Line("linux.resources.cpu.shares", "1024", "both"),
    Line("linux.resources.devices", r#"[{"allow":false,"access":"rwm"}]"#, "guest"),
    Line("linux.resources.devices", r#"[{"allow":true,"type":"c","access":"x"}]"#, "refused"),
    Line("linux.resources.devices", r#"[{"allow":true,"type":"p","access":"r"}]"#, "refused"),
    Line("linux.resources.devices", r#"[{"allow":true,"type":"c","major":4294967296,"access":"r"}]"#, "refused"),
    Line("linux.resources.hugepageLimits", r#"[{"pageSize":"2MB","limit":0}]"#, "guest"),
    Line("linux.resources.hugepageLimits", r#"[{"pageSize":"64KB","limit":0}]"#, "refused"),
    Line("linux.resources.memory.checkBeforeUpdate", "true", "guest"),
    Line("linux.resources.memory.disableOOMKiller", "true", "refused"),
    Line("linux.resources.memory.disableOOMKiller", "false", "nothing"),
    Line("linux.resources.memory.kernel", "1000", "refused"),
    Line("linux.resources.memory.kernelTCP", "1000", "refused"),
    Line("linux.resources.memory.kernelTCP", "-1", "nothing"),
    Line("linux.resources.memory.limit", "134217728", "both"),
    Line("linux.resources.memory.limit", "1048576", "refused"),
    Line("linux.resources.memory.limit", "-1", "both"),
    Line("linux.resources.memory.limit", "-2", "refused"),
    Line("linux.resources.memory.reservation", "134217728", "guest"),
    Line("linux.resources.memory.swap", "134217728", "both"),
    Line("linux.resources.memory.swap", "-1", "both"),
    Line("linux.resources.memory.swap", "-2", "refused"),
    Line("linux.resources.memory.swappiness", "60", "guest"),
    Line("linux.resources.memory.swappiness", "101", "refused"),
    Line("linux.resources.memory.useHierarchy", "true", "nothing"),
    Line("linux.resources.memory.useHierarchy", "false", "refused"),
    Line("linux.resources.network.classID", "5", "refused"),
    Line("linux.resources.network.priorities", r#"[{"name":"eth0","priority":1}]"#, "refused"),
    Line("linux.resources.pids.limit", "10", "guest"),
    Line("linux.resources.rdma", r#"{"mlx5":{"hcaHandles":1}}"#, "refused"),
    Line("linux.resources.unified", r#"{"memory.high":"1","pids.max":"5"}"#, "guest"),
    Line("linux.resources.unified", r#"{"cpu.weight":"5"}"#, "both"),
    Line("linux.resources.unified", r#"{"memory.swap.max":"5"}"#, "both"),
    Line("linux.resources.unified", r#"{"hugetlb.2MB.max":"0"}"#, "guest"),
    Line("linux.resources.unified", r#"{"io.max":"1"}"#, "host"),
    Line("linux.resources.unified", r#"{"cgroup.freeze":"1"}"#, "refused"),
    Line("linux.resources.unified", r#"{"cpu.max":"max"}"#, "both"),
    Line("linux.resources.unified", r#"{"cpu.max":"x"}"#, "refused"),
    Line("linux.resources.unified", r#"{"rdma.max":"x"}"#, "refused"),
    Line("linux.resources.unified", r#"{"misc.max":"1"}"#, "refused"),
    Line("linux.resources.unified", r#"{"cpuset.cpus":"0"}"#, "host"),
    Line("linux.resources.unified", r#"{"memory/x.y":"0"}"#, "refused"),
    Line("linux.resources.unified", r#"{"weird":"0"}"#, "refused"),
    Line("linux.rootfsPropagation", r#""rprivate""#, "guest"),
    Line("linux.rootfsPropagation", r#""""#, "nothing"),
    Line("linux.rootfsPropagation", r#""slave""#, "guest"),
    Line("linux.rootfsPropagation", r#""sideways""#, "refused"),
    Line("linux.rootfsPropagation", r#""r""#, "refused"),
    Line("linux.rootfsPropagation", r#""ro""#, "refused"),
    Line("linux.seccomp", r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#, "both"),
    Line("linux.seccomp", r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":[""],"action":"SCMP_ACT_ALLOW"}]}"#, "refused"),
    Line("linux.seccomp", r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "refused"),
    Line("linux.seccomp", r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s"}"#, "refused"),
    Line("linux.sysctl", r#"{"net.ipv4.ip_forward":"1"}"#, "guest"),
    Line("linux.sysctl", r#"{"vm.overcommit_memory":"1"}"#, "guest"),
    Line("linux.sysctl", r#"{"kernel.sem":"1 2 3 4"}"#, "refused"),
    Line("linux.sysctl", r#"{"kernel.hostname":"h"}"#, "refused"),
    Line("linux.sysctl", r#"{"../x":"1"}"#, "refused"),
    Line("linux.timeOffsets", r#"{"monotonic":{"secs":1,"nanosecs":0}}"#, "guest"),
    Line("linux.timeOffsets", r#"{"realtime":{"secs":1}}"#, "refused"),
    Line("linux.timeOffsets", r#"{"boottime":{"nanosecs":1000000000}}"#, "refused"),
    Line("linux.uidMappings", r#"[{"containerID":0,"hostID":1,"size":1}]"#, "guest"),
    Line("linux.uidMappings", r#"[{"containerID":0,"hostID":1,"size":0}]"#, "refused"),
    Line("linux.uidMappings", r#"[{"containerID":0,"hostID":4294967295,"size":2}]"#, "refused"),
    Line("mounts.destination", r#"[{"destination":"/proc","type":"proc"}]"#, "guest"),
    Line("mounts.destination", r#"[{"destination":"proc","type":"proc"}]"#, "refused"),
    Line("mounts.type", r#"[{"destination":"/s","type":"sysfs"},{"destination":"/t","type":"tmpfs"}]"#, "guest"),
    Line("mounts.type", r#"[{"destination":"/d","type":"devpts"},{"destination":"/q","type":"mqueue"}]"#, "guest"),
    Line("mounts.type", r#"[{"destination":"/c","type":"cgroup"},{"destination":"/2","type":"cgroup2"}]"#, "guest"),
    Line("mounts.type", r#"[{"destination":"/n","type":"nfs"}]"#, "refused"),
    Line("mounts.type", r#"[{"destination":"/n"}]"#, "refused"),
    Line("mounts.type", r#"[{"destination":"/n","type":"ramfs"},{"destination":"/h","type":"hugetlbfs"}]"#, "guest"),
    Line("mounts.type", r#"[{"destination":"/o","type":"overlay","options":["lowerdir=/a:/b"]}]"#, "guest"),
    Line("mounts.options", r#"[{"destination":"/o","type":"overlay","options":["lowerdir=/a:/b"]}]"#, "both"),
    Line("mounts.options", r#"[{"destination":"/o","type":"overlay","options":["lowerdir=a"]}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/dir"}]"#, "both"),
    Line("mounts.source", r#"[{"destination":"/m","source":"/file","options":["bind"]}]"#, "both"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/socket"}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/fifo"}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/dev/null"}]"#, "both"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/dev/mem"}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/dev/sda"}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/proc"}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/closed"}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind","source":"/missing"}]"#, "refused"),
    Line("mounts.source", r#"[{"destination":"/m","type":"bind"}]"#, "refused"),
    Line("mounts.options", r#"[{"destination":"/m","source":"/dir","options":["rbind","rro","nosuid"]}]"#, "both"),
    Line("mounts.options", r#"[{"destination":"/m","source":"/dir","options":["rbind","rprivate"]}]"#, "both"),
    Line("mounts.options", r#"[{"destination":"/m","source":"/dir","options":["rbind","rslave"]}]"#, "both"),
    Line("mounts.options", r#"[{"destination":"/m","source":"/dir","options":["rbind","rshared"]}]"#, "refused"),
    Line("mounts.options", r#"[{"destination":"/m","type":"bind","source":"/dir","options":["shared"]}]"#, "refused"),
    Line("mounts.options", r#"[{"destination":"/m","source":"/dir","options":["bind","idmap"]}]"#, "refused"),
    Line("mounts.options", r#"[{"destination":"/m","type":"tmpfs","options":["shared","size=1m"]}]"#, "guest"),
    Line("mounts.options", r#"[{"destination":"/m","type":"tmpfs","options":["idmap"]}]"#, "refused"),
    Line("mounts.options", r#"[{"destination":"/m","source":"/dir","options":["bind","colour=red"]}]"#, "refused"),
    Line("mounts.options", r#"[{"destination":"/proc/sys","source":"/socket","options":["bind","remount","ro"]}]"#, "guest"),
    Line("mounts.uidMappings", r#"[{"destination":"/m","type":"bind","source":"/dir","uidMappings":[{"containerID":0,"hostID":1,"size":1}],"gidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#, "host"),
    Line("mounts.uidMappings", r#"[{"destination":"/m","type":"proc","uidMappings":[{"containerID":0,"hostID":1,"size":1}],"gidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#, "refused"),
    Line("mounts.gidMappings", r#"[{"destination":"/m","type":"bind","source":"/dir","uidMappings":[{"containerID":0,"hostID":1,"size":1}],"gidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#, "host"),
    Line("mounts.gidMappings", r#"[{"destination":"/m","type":"bind","source":"/dir","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#, "refused"),
    Line("ociVersion", r#""1.0.2""#, "host"),
    Line("process.apparmorProfile", r#""docker-default""#, "guest"),
    Line("process.apparmorProfile", r#""no-such""#, "refused"),
    Line("process.apparmorProfile", r#"":ns:docker-default""#, "refused"),
    Line("process.apparmorProfile", r#""docker-default//&other""#, "refused"),
    Line("process.apparmorProfile", r#""unconfined""#, "nothing"),
    Line("process.args", r#"["sh","-c","x"]"#, "guest"),
    Line("process.args", "[]", "refused"),
    Line("process.args", r#"["a\u0000b"]"#, "refused"),
    Line("process.capabilities", r#"{"bounding":["CAP_KILL"]}"#, "guest"),
    Line("process.commandLine", r#""sh""#, "refused"),
    Line("process.consoleSize", r#"{"height":1,"width":1}"#, "both"),
    Line("process.consoleSize", r#"{"height":65536,"width":1}"#, "refused"),
    Line("process.cwd", r#""/tmp""#, "guest"),
    Line("process.cwd", r#""tmp""#, "refused"),
    Line("process.env", r#"["A=B"]"#, "guest"),
    Line("process.env", r#"["A"]"#, "refused"),
    Line("process.env", r#"["=B"]"#, "refused"),
    Line("process.env", "[]", "nothing"),
    Line("process.execCPUAffinity", r#"{"initial":"0"}"#, "guest"),
    Line("process.execCPUAffinity", r#"{"final":"1"}"#, "refused"),
    Line("process.ioPriority", r#"{"class":"IOPRIO_CLASS_BE","priority":4}"#, "guest"),
    Line("process.ioPriority", r#"{"class":"IOPRIO_CLASS_RT","priority":8}"#, "refused"),
    Line("process.noNewPrivileges", "true", "guest"),
    Line("process.oomScoreAdj", "100", "both"),
    Line("process.oomScoreAdj", "1001", "refused"),
    Line("process.rlimits", r#"[{"type":"RLIMIT_NOFILE","soft":1,"hard":1}]"#, "guest"),
    Line("process.rlimits", r#"[{"type":"RLIMIT_NOFILE","soft":2,"hard":1}]"#, "refused"),
    Line("process.rlimits", r#"[{"type":"RLIMIT_CPU","soft":2,"hard":2},{"type":"RLIMIT_CPU","soft":2,"hard":2}]"#, "refused"),
    Line("process.scheduler", r#"{"policy":"SCHED_OTHER"}"#, "guest"),
    Line("process.scheduler", r#"{"policy":"SCHED_OTHER","nice":20}"#, "refused"),
    Line("process.scheduler", r#"{"policy":"SCHED_FIFO","priority":1}"#, "guest"),
    Line("process.scheduler", r#"{"policy":"SCHED_RR","priority":100}"#, "refused"),
    Line("process.scheduler", r#"{"policy":"SCHED_FIFO"}"#, "refused"),
    Line("process.scheduler", r#"{"policy":"SCHED_IDLE","priority":1}"#, "refused"),
    Line("process.scheduler", r#"{"policy":"SCHED_DEADLINE","runtime":2048,"deadline":4096,"period":4096}"#, "guest"),
    Line("process.scheduler", r#"{"policy":"SCHED_DEADLINE","runtime":5000,"deadline":4096}"#, "refused"),
    Line("process.scheduler", r#"{"policy":"SCHED_BATCH","runtime":1}"#, "refused"),
    Line("process.scheduler", r#"{"policy":"SCHED_ISO"}"#, "refused"),
    Line("process.selinuxLabel", r#""u:r:machine_t:s0:c1,c2""#, "host"),
    Line("process.terminal", "true", "both"),
    Line("process.user.uid", "7", "guest"),
    Line("process.user.uid", "4294967295", "refused"),
    Line("process.user.gid", "7", "guest"),
    Line("process.user.gid", "4294967295", "refused"),
    Line("process.user.umask", "18", "guest"),
    Line("process.user.additionalGids", "[5]", "guest"),
    Line("process.user.additionalGids", "[4294967295]", "refused"),
    Line("process.user.username", r#""me""#, "refused"),
    Line("root.path", r#""elsewhere""#, "host"),
    Line("root.path", r#""""#, "refused"),
    Line("root.path", r#""/missing""#, "refused"),
    Line("root.path", r#""/file""#, "refused"),
    Line("root.path", r#""/proc""#, "refused"),
    Line("root.readonly", "true", "both"),
    Line("solaris", r#"{"milestone":"x"}"#, "refused"),
    Line("vm.hwConfig.memory", "134217728", "host"),
    Line("vm.hwConfig.memory", "4096", "refused"),
    Line("vm.hwConfig.vcpus", "2", "host"),
    Line("vm.hwConfig.vcpus", "0", "refused"),
    Line("vm.hypervisor", r#"{"path":"/usr/bin/qemu"}"#, "refused"),
    Line("vm.image", r#"{"path":"/i","format":"raw"}"#, "refused"),
    Line("vm.kernel", r#"{"path":"/vmlinux"}"#, "refused"),
    Line("vm.kernel", r#"{"path":""}"#, "nothing"),
    Line("windows", r#"{"layerFolders":["a"]}"#, "refused"),
    Line("zos", r#"{"namespaces":[{"type":"pid"}]}"#, "refused"),
];

fn kind(path: &Path) -> Result<FileKind, String> {
    match path.to_str() {
        Some("/file") => Ok(FileKind::File),
        Some("/socket") => Ok(FileKind::Socket),
        Some("/fifo") => Ok(FileKind::Fifo),
        Some("/dev/null") => Ok(FileKind::Character(Device { major: 1, minor: 3 })),
        Some("/dev/mem") => Ok(FileKind::Character(Device { major: 1, minor: 1 })),
        Some("/dev/sda") => Ok(FileKind::Block),
        Some("/proc") => Ok(FileKind::Processes),
        Some("/closed") => Ok(FileKind::Closed),
        Some("/missing") => Err("stat /missing: No such file or directory".into()),
        _ => Ok(FileKind::Directory),
    }
}

fn namespace(path: &Path, _: LinuxNamespaceType) -> Result<Owner, String> {
    match path {
        path if path.starts_with("/missing") => Err("open /missing: No such file".into()),
        path => Ok(namespaces::owner(path)),
    }
}

pub(super) fn facts() -> Facts<'static> {
    Facts {
        bundle: Path::new("/b"),
        memory: 1 << 34,
        room: 1 << 33,
        kind: &kind,
        real: &provided::real,
        systemd: false,
        resctrl: true,
        policies: Some(&apparmor::policy),
        selinux: Some(&selinux::label),
        labels: &selinux::labels_of,
        namespace: &namespace,
        annotations: &namespaces::annotations_of,
    }
}

fn decided(value: &Value) -> Decision {
    decided_on(value, &facts())
}

/// As a file is read. What the configuration does not say of namespaces is the guest's.
fn decided_on(value: &Value, facts: &Facts<'_>) -> Decision {
    let mut value = value.clone();
    value["annotations"][annotations::HOST_NAMESPACES] = "guest".into();
    let config =
        crate::config::parse(&value.to_string()).unwrap_or_else(|e| panic!("{value}: {e}"));
    decide(&config.spec, &config.value, facts)
}

fn planned(value: &Value) -> Result<Plan, Refused> {
    decided(value).plan
}

fn minimal() -> Value {
    let json = format!(
        r#"{{"ociVersion":"1.3.0","root":{{"path":"rootfs"}},"process":{{{PROCESS}}},
            "linux":{{"namespaces":[{NAMESPACES}]}}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

/// A minimal configuration with one property set, and what it cannot be without. What is inside an array is given with
/// the array.
fn with(property: &str, value: &str) -> Value {
    let mut config = minimal();
    let needed = match property {
        "linux.uidMappings" | "linux.gidMappings" => {
            let map = serde_json::json!([{"containerID": 0, "hostID": 0, "size": 1}]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
            "user"
        }
        "linux.timeOffsets" => "time",
        "linux.maskedPaths" | "linux.readonlyPaths" => "mount",
        "linux.sysctl" | "linux.netDevices" => "network",
        "linux.resources.memory.swap" => {
            config["linux"]["resources"]["memory"]["limit"] = (100 << 20).into();
            ""
        }
        _ => "",
    };
    if !needed.is_empty() {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(serde_json::json!({"type": needed}));
    }
    let path = property
        .replace("linux.namespaces.path", "linux.namespaces")
        .replace("linux.namespaces.type", "linux.namespaces");
    let path = if path.starts_with("mounts.") {
        "mounts"
    } else {
        &path
    };
    let mut at = &mut config;
    for key in path.split('.') {
        at = &mut at[key];
    }
    *at = serde_json::from_str(value).unwrap_or_else(|e| panic!("{property} {value}: {e}"));
    config
}

/// A name without indexes and keys.
fn plain(name: &str) -> String {
    let mut depth = 0;
    name.chars()
        .filter(|c| {
            depth += i32::from(*c == '[');
            let outside = depth == 0;
            depth -= i32::from(*c == ']');
            outside
        })
        .collect()
}

/// What becomes of a property: the same for all of its elements, or refused if one is.
fn fate(ledger: &Ledger, property: &str) -> String {
    let entries = ledger.entries().iter();
    let entries = entries.filter(|entry| plain(&entry.property) == property);
    let mut words: Vec<&str> = entries.map(|entry| entry.words().0).collect();
    words.dedup();
    if words.contains(&"refused") {
        words = vec!["refused"];
    }
    words.join(" ")
}

#[test]
fn every_property_ends_where_the_table_says() {
    let mut wrong = Vec::new();
    for Line(property, value, word) in TABLE {
        let Decision { ledger, plan } = decided(&with(property, value));
        let found = fate(&ledger, property);
        let refusals = plan.err();
        if found != *word || refusals.is_some() != (*word == "refused") {
            wrong.push(format!(
                "{property} {value}: {found} instead of {word} ({refusals:?})"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_every_property() {
    for property in properties::names() {
        assert!(TABLE.iter().any(|line| line.0 == property), "{property}");
    }
    for Line(property, ..) in TABLE {
        assert!(
            properties::names().any(|name| name == *property),
            "{property}"
        );
    }
}

/// docs/configuration.md has a line for each, too.
#[test]
fn the_documentation_has_every_property() {
    let text = include_str!("../../../docs/configuration.md");
    for property in properties::names() {
        assert!(text.contains(&format!("\n| `{property}` | ")), "{property}");
    }
}

#[test]
fn all_that_is_refused_is_named() {
    let mut config = with("vm.kernel", r#"{"path":"/vmlinux"}"#);
    config["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"});
    config["linux"]["devices"] =
        serde_json::json!([{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}]);
    config["process"]["args"] = serde_json::json!([]);
    config["process"]["cwd"] = "tmp".into();
    config["hostname"] = "h".into();
    config["linux"]["namespaces"] = serde_json::json!([]);
    let error = planned(&config).err().unwrap().to_string();
    let refusals: Vec<&str> = error.split("; ").collect();
    assert_eq!(
        refusals,
        [
            "hostname: cannot be set without a private UTS namespace",
            "linux.devices[0]: /dev/mem: the guest has no character device 1:1",
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY is not supported yet",
            "process.args: must not be empty",
            "process.cwd: must be an absolute path",
            "vm.kernel: the kernel and all else that runs the machine are Chiton's own",
        ]
    );
}

#[test]
fn a_scope_of_systemd_has_a_name_of_three_parts() {
    let refusal = |property: &str, value: &str| {
        let facts = Facts {
            systemd: true,
            ..facts()
        };
        let error = decided_on(&with(property, value), &facts).plan.err();
        error.map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refusal("linux.cgroupsPath", r#""a.slice:b:c""#), "");
    let error = refusal("linux.cgroupsPath", r#""/a/b""#);
    assert!(error.starts_with("linux.cgroupsPath: expected cgroupsPath to be of format"));
    let error = refusal("annotations", r#"{"org.systemd.property.X":"?"}"#);
    assert!(error.starts_with("annotations: annotation org.systemd.property.X"));
}

#[test]
fn the_guest_has_the_cgroup_of_the_configuration() {
    for (path, expected) in [
        (None, "id"),
        (Some(""), "id"),
        (Some("/a/b"), "/a/b"),
        (Some("a"), "a"),
        (
            Some("machine.slice:libpod:1"),
            "machine.slice/libpod-1.scope",
        ),
        (Some("/a:b:c"), "/a:b:c"),
        (Some("a:b"), "a:b"),
    ] {
        assert_eq!(
            guest_cgroup(path.map(Path::new), "id"),
            expected,
            "{path:?}"
        );
    }
}

#[test]
fn resctrl_has_to_be_there() {
    let config = with("linux.intelRdt", r#"{"closID":"x"}"#);
    let facts = Facts {
        resctrl: false,
        ..facts()
    };
    let error = decided_on(&config, &facts).plan.err().unwrap();
    assert_eq!(
        error.to_string(),
        "linux.intelRdt: needs resctrl, which is not mounted on this host"
    );
}

#[test]
fn the_minimal_plan() {
    let plan = planned(&minimal()).ok().unwrap();
    assert_eq!((plan.memory, plan.vcpus), (1 << 33, 1));
    assert_eq!(
        plan.overlay,
        Overlay {
            rootfs: "rootfs".into(),
            ..Overlay::default()
        }
    );
    assert!(matches!(plan.network, Network::Guests));
    let [rootfs] = &plan.shares[..] else {
        panic!("one share")
    };
    assert_eq!(
        (rootfs.name.as_str(), rootfs.source.as_path()),
        ("rootfs", Path::new("/b/rootfs"))
    );
    assert!(rootfs.recursive && !rootfs.sealed);
    assert!(plan.warnings.is_empty());
}

#[test]
fn nothing_said_of_linux_asks_for_nothing() {
    let mut config = minimal();
    config.as_object_mut().unwrap().remove("linux");
    let plan = planned(&config).ok().unwrap();
    assert!(plan.limits.iter().all(|limit| limit.property.is_none()));
    assert!(matches!(plan.network, Network::Guests));
}

#[test]
fn who_may_do_everything_has_the_guests_devices() {
    let mut config = with(
        "linux.devices",
        r#"[{"path":"/dev/sda","type":"b","major":8,"minor":0},{"path":"/dev/mem","type":"c","major":1,"minor":1},
            {"path":"/dev/fuse","type":"c","major":10,"minor":229},{"path":"/dev/p","type":"p"}]"#,
    );
    assert!(planned(&config).is_err());
    config["linux"]["resources"]["devices"] = serde_json::json!([{"allow": true, "access": "rwm"}]);
    assert!(planned(&config).is_err(), "without capabilities");
    let all = &specification::CAPABILITIES[..38];
    config["process"]["capabilities"] = serde_json::json!({"bounding": all});
    let Decision { ledger, plan } = decided(&config);
    let plan = plan.ok().unwrap();
    assert!(plan.disks.is_empty() && plan.overlay.guests_devices);
    let what = "2 devices of this host are left out: everything is allowed, so the container has the guest's own";
    assert_eq!(plan.warnings, [format!("linux.devices: {what}")]);
    let entry = ledger
        .entries()
        .iter()
        .find(|entry| entry.property == "linux.devices");
    assert_eq!(entry.unwrap().words(), ("guest", Some(what.to_owned())));
    config["process"]["capabilities"] = serde_json::json!({"bounding": &all[1..]});
    assert!(planned(&config).is_err(), "without all capabilities");
}

#[test]
fn bind_mounts_become_shares() {
    let config = with(
        "mounts",
        r#"[{"destination":"/proc","type":"proc"},
            {"destination":"/a","type":"bind","source":"data","options":["rbind","ro"]},
            {"destination":"/b","source":"/file","options":["bind"]}]"#,
    );
    let plan = planned(&config).ok().unwrap();
    assert_eq!(
        plan.overlay.binds,
        [(1, "mnt/0".to_owned()), (2, "mnt/1".to_owned())]
    );
    let shares: Vec<_> = plan.shares[1..]
        .iter()
        .map(|s| {
            (
                s.name.as_str(),
                s.source.to_str().unwrap(),
                s.recursive,
                s.own.set,
            )
        })
        .collect();
    assert_eq!(
        shares,
        [
            ("mnt/0", "/b/data", true, libc::MOUNT_ATTR_RDONLY),
            ("mnt/1", "/file", false, 0)
        ]
    );
}

#[test]
fn the_host_changes_what_means_something_there() {
    let config = with(
        "mounts",
        r#"[{"destination":"/a","source":"/a","options":["rbind","rw","rro","noatime","nosuid","rslave"]},
            {"destination":"/b","source":"/b","options":["rbind","ro","rw","rrw","ridmap"],
             "uidMappings":[{"containerID":0,"hostID":1000,"size":10}],
             "gidMappings":[{"containerID":0,"hostID":2000,"size":20}]},
            {"destination":"/null","source":"/dev/null","options":["bind","ro"]},
            {"destination":"/o","type":"overlay","source":"overlay",
             "options":["ro","lowerdir=/x","nodev","upperdir=/y","rprivate","volatile"]}]"#,
    );
    let plan = planned(&config).ok().unwrap();
    let [_, a, b, overlay] = &plan.shares[..] else {
        panic!("{:?}", plan.shares)
    };
    let (read_only, time) = (libc::MOUNT_ATTR_RDONLY, libc::MOUNT_ATTR__ATIME);
    assert_eq!((a.own.set, a.own.clear), (libc::MOUNT_ATTR_NOATIME, time));
    assert_eq!((a.below.set, a.below.clear), (read_only, 0));
    assert!(a.follows && a.id_map.is_none() && a.recursive);
    assert_eq!((b.own.set, b.own.clear), (0, 0));
    assert_eq!((b.below.set, b.below.clear), (0, read_only));
    let map = b.id_map.as_ref().unwrap();
    assert_eq!((map.uids[0].seen, map.gids[0].count), (1000, 20));
    assert!(map.recursive && !b.follows);
    assert_eq!(
        overlay.overlay.as_deref(),
        Some("lowerdir=/x,upperdir=/y,volatile")
    );
    assert_eq!(overlay.own.set, read_only);
    assert_eq!(plan.overlay.devices, [(2, Device { major: 1, minor: 3 })]);
    let names: Vec<_> = plan.overlay.binds.iter().map(|(index, _)| *index).collect();
    assert_eq!(names, [0, 1, 3]);
}

#[test]
fn mappings_come_from_the_user_namespace_if_the_mount_has_none() {
    let mut config = with(
        "mounts",
        r#"[{"destination":"/m","source":"/dir","options":["bind","idmap"]}]"#,
    );
    assert!(planned(&config).is_err());
    config["linux"] = serde_json::json!({"namespaces": [{"type": "user"}],
        "uidMappings": [{"containerID": 0, "hostID": 7, "size": 3}],
        "gidMappings": [{"containerID": 0, "hostID": 8, "size": 3}]});
    let plan = planned(&config).ok().unwrap();
    let map = plan.shares[1].id_map.clone().unwrap();
    assert_eq!((map.uids[0].seen, map.gids[0].seen), (7, 8));
    assert!(!map.recursive);
}

#[test]
fn unknown_properties_are_warnings() {
    let plan = planned(&with("linux.galaxy", "1")).ok().unwrap();
    assert_eq!(plan.warnings, ["ignoring unknown property linux.galaxy"]);
    let mut config = with(
        "linux.seccomp",
        r#"{"defaultAction":"SCMP_ACT_ALLOW","star":1,"syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","moon":{}},
            {"names":["write"],"action":"SCMP_ACT_LOG","sun":5}]}"#,
    );
    config["process"]["rlimits"] =
        serde_json::json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1, "colour": "red"}]);
    config["annotations"] = serde_json::json!({"any": "thing"});
    let plan = planned(&config).ok().unwrap();
    assert_eq!(
        plan.warnings,
        [
            "ignoring unknown property linux.seccomp.star",
            "ignoring unknown property linux.seccomp.syscalls[1].sun",
            "ignoring unknown property process.rlimits[0].colour",
        ]
    );
}

#[test]
fn a_process_and_a_root_are_needed() {
    for property in ["process", "root"] {
        let mut config = minimal();
        config.as_object_mut().unwrap().remove(property);
        assert!(
            planned(&config)
                .err()
                .unwrap()
                .to_string()
                .starts_with(property)
        );
    }
}
