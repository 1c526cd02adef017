//! What the host asks of the guest.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::frame::{self, Decoder, Error};
use crate::{ContainerId, ProcessId};

/// What the host asks of the guest. Answered by [`Message::Response`](crate::Message)
/// with the same `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, unique on this stream.
    pub id: u64,
    /// The container that it is about.
    pub container: ContainerId,
    /// What is asked.
    pub body: RequestBody,
}

/// The requests. Every request is answered exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Sets up a container with a new number, short of executing its program. Answered by
    /// [`Reply::Created`](crate::Reply). A number that is not new is refused, and so is one container
    /// too many at a time.
    Create(Create),
    /// Configures the container's network and executes its program. Answered by [`Reply::Started`](crate::Reply) once `execve` has
    /// succeeded. After a failure the container is of no use any more.
    Start(Network),
    /// Changes the network of a container that runs. Answered by [`Reply::Done`](crate::Reply), or by the first failure; what can be
    /// done of it is done all the same.
    Network(NetworkChange),
    /// Executes one more process in the container. Answered by [`Reply::Executed`](crate::Reply) once
    /// `execve` has succeeded; its end is told by [`Message::Exited`](crate::Message).
    Exec(Exec),
    /// Sends a signal to a process. Answered by [`Reply::Done`](crate::Reply), or by a
    /// [`FailureKind::NotRunning`](crate::FailureKind) failure.
    Kill {
        /// The process.
        #[serde(default)]
        process: ProcessId,
        /// Signal number of x86_64 Linux (`signal(7)`); 0 probes only.
        signal: i32,
        /// To every process of the container's cgroup instead of to the one named.
        all: bool,
    },
    /// Sets the window size of a process's terminal. Answered by [`Reply::Done`](crate::Reply).
    Resize {
        /// The process.
        process: ProcessId,
        /// The new size.
        size: TerminalSize,
    },
    /// Freezes the container's cgroup. Answered by [`Reply::Done`](crate::Reply) when all of it is frozen.
    Pause,
    /// Thaws the container's cgroup. Answered by [`Reply::Done`](crate::Reply).
    Resume,
    /// Changes the limits of the container's cgroup. Answered by [`Reply::Done`](crate::Reply).
    Update {
        /// The JSON of a `linux.resources` object, of which only what is present changes.
        /// [Attached](Request::encode).
        #[serde(skip)]
        resources: Vec<u8>,
    },
    /// Asks for the files of the container's cgroup. Answered by [`Reply::Statistics`](crate::Reply).
    Statistics,
    /// Asks for the processes of the container. Answered by [`Reply::Processes`](crate::Reply).
    Processes,
    /// Connects to localhost in the container's network namespace, for somebody who has done so on the
    /// host, and joins that with a stream: each passes what the other sends, and its end. Answered by
    /// [`Reply::Done`](crate::Reply) when that has begun. When it comes to nothing the stream is closed
    /// in both directions at once, or there is none.
    Connect {
        /// Where to: 127.0.0.1 or ::1, or the other of them if there is nobody.
        address: SocketAddr,
        /// The stream that the agent dials.
        ports: Ports,
    },
    /// Ends a container that is not [`FIRST`](crate::FIRST) unless it has ended, and unmounts what the guest has
    /// mounted below the directory of the share that has its number for a name. Answered by
    /// [`Reply::Done`](crate::Reply) when nothing of it is left, also where there is no such container.
    Remove,
    /// Asks for the machine's CLOCK_MONOTONIC, whatever the container. Answered by
    /// [`Reply::Time`](crate::Reply).
    Time,
    /// Sets the machine's CLOCK_REALTIME, whatever the container. Answered by
    /// [`Reply::Done`](crate::Reply).
    SetTime {
        /// The host's CLOCK_REALTIME, ns.
        realtime: u64,
        /// What the guest's CLOCK_MONOTONIC was then, ns.
        monotonic: u64,
        /// The clock is set at once. Otherwise it is led there so that it never goes back, as long as it
        /// is not far off.
        step: bool,
    },
}

impl Request {
    /// The bytes that it travels as: its frame, and each of its attachments as it is in a frame behind
    /// that. PID 1 has no use for an attachment but to pass it on.
    ///
    /// # Errors
    /// As for [`encode`](crate::encode), for any of the frames.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = frame::encode(self)?;
        for attachment in self.body.attachments().into_iter().flatten() {
            frame::append_bytes(&mut bytes, attachment)?;
        }
        Ok(bytes)
    }
}

impl RequestBody {
    fn attachments(&self) -> [Option<&[u8]>; 2] {
        match self {
            RequestBody::Create(create) => [Some(&create.setup), Some(&create.policy)],
            RequestBody::Exec(exec) => [Some(&exec.config), Some(&exec.policy)],
            RequestBody::Update { resources } => [Some(resources), None],
            _ => [None, None],
        }
    }

    /// The same, in the same order.
    fn attachments_mut(&mut self) -> [Option<&mut Vec<u8>>; 2] {
        match self {
            RequestBody::Create(create) => [Some(&mut create.setup), Some(&mut create.policy)],
            RequestBody::Exec(exec) => [Some(&mut exec.config), Some(&mut exec.policy)],
            RequestBody::Update { resources } => [Some(resources), None],
            _ => [None, None],
        }
    }
}

/// Turns a byte stream into requests with their attachments. The counterpart of [`Request::encode`].
#[derive(Debug, Default)]
pub struct Requests {
    frames: Decoder,
    /// A request whose attachments have not all arrived, and how many have.
    incomplete: Option<(Request, usize)>,
}

impl Requests {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// The next request, or None when more bytes are needed.
    ///
    /// # Errors
    /// Those of [`Decoder::take`].
    pub fn take(&mut self) -> Result<Option<Request>, Error> {
        if self.incomplete.is_none() {
            self.incomplete = self.frames.take()?.map(|request| (request, 0));
        }
        if let Some((request, arrived)) = &mut self.incomplete {
            let attachments = request.body.attachments_mut().into_iter().flatten();
            for attachment in attachments.skip(*arrived) {
                let Some(bytes) = self.frames.take_bytes()? else {
                    return Ok(None);
                };
                *attachment = bytes;
                *arrived += 1;
            }
        }
        Ok(self.incomplete.take().map(|(request, _)| request))
    }
}

/// What the network namespace is to have in addition to its loopback interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// Files below `/proc/sys/net` and what is written to them, once the interfaces are there.
    pub settings: Vec<(String, String)>,
    /// What the kernel is asked for then, in this order.
    pub requests: Vec<NetlinkRequest>,
    /// The host has a name server at [`NAMES_ADDRESS`](crate::NAMES_ADDRESS), which is to be there in the guest, too.
    #[serde(default)]
    pub names: bool,
}

/// What has become of the host's network namespace meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkChange {
    /// The devices whose interfaces are gone; their drivers are to let go of them.
    pub gone: Vec<u8>,
    /// What the kernel is asked to take back, before it gets what is new. What is not there any more is none.
    pub undone: Vec<NetlinkRequest>,
    /// What is new. What is there already is there.
    pub new: Network,
}

/// A network interface: what becomes of a device of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The device `virtio-mmio.N`, which no driver is bound to.
    pub device: u8,
    /// Its Ethernet address, which the device knows itself.
    pub mac: [u8; 6],
    /// The interface's name.
    pub name: String,
    /// The interface's index.
    pub index: i32,
}

/// A request of rtnetlink(7), which asks for an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkRequest {
    /// What it is about, for an error: `add the address 10.0.0.2/24 to eth0`.
    pub what: String,
    /// The message with its header, in hexadecimal.
    pub message: String,
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A process to execute in the container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Its name from now on.
    pub process: ProcessId,
    /// The JSON of a `process` object as in `config.json`. The container's seccomp filter applies.
    /// [Attached](Request::encode).
    #[serde(skip)]
    pub config: Vec<u8>,
    /// The compiled AppArmor policy that the kernel must have before; empty if there is none, or if the
    /// kernel has had it since the container was created. At most [`POLICY_MAX`](crate::POLICY_MAX) bytes.
    /// [Attached](Request::encode).
    #[serde(skip)]
    pub policy: Vec<u8>,
    /// It has a terminal (`process.terminal`).
    pub terminal: bool,
    /// The terminal does not make CR LF of LF (ONLCR, termios(3)): whoever shows it does.
    #[serde(default)]
    pub plain_newlines: bool,
    /// The cgroup below the container's own that it starts in; the container's own if empty.
    #[serde(default)]
    pub cgroup: String,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Its descriptors from number 3 on, at most [`EXTRA_MAX`](crate::EXTRA_MAX).
    #[serde(default)]
    pub extra: Vec<Extra>,
}

/// The container to set up: what PID 1 must know of it. It does not read the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Its cgroup: the path below the root of the guest's hierarchy. No other container has this one,
    /// one below it or one above it.
    pub cgroup: String,
    /// It has a pid namespace of its own, so that its processes end with its init.
    pub own_pids: bool,
    /// The namespaces of other containers that it has in place of its own.
    #[serde(default)]
    pub joins: Vec<Joined>,
    /// Its init has a terminal (`process.terminal`).
    pub terminal: bool,
    /// As [`Exec::plain_newlines`].
    #[serde(default)]
    pub plain_newlines: bool,
    /// It gets a socket for sd_notify(3), which NOTIFY_SOCKET names.
    #[serde(default)]
    pub notify: bool,
    /// The container's standard streams.
    pub stdio: Stdio,
    /// The init's descriptors from number 3 on, at most [`EXTRA_MAX`](crate::EXTRA_MAX).
    #[serde(default)]
    pub extra: Vec<Extra>,
    /// The bytes of a [`Setup`], which PID 1 keeps and gives to all who set processes of this
    /// container up. [Attached](Request::encode).
    #[serde(skip)]
    pub setup: Vec<u8>,
    /// As [`Exec::policy`], for the container's init.
    #[serde(skip)]
    pub policy: Vec<u8>,
}

/// Namespaces of a container of this machine that another one joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Whose they are: that of a container whose init has been created and has not ended.
    pub container: ContainerId,
    /// Which: `CLONE_NEW*` of linux/sched.h, but for that of mounts.
    pub namespaces: i32,
}

/// What a container is made from. Its bytes are a frame, and the configuration as it is behind that.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Setup {
    /// Container id, for the state that hooks are told.
    pub id: String,
    /// The bundle's path on the host, for the same.
    #[serde(default)]
    pub bundle: String,
    /// Where the host has put what the configuration names by host paths.
    pub overlay: Overlay,
    /// The bytes of `config.json`, verbatim.
    #[serde(skip)]
    pub config: Vec<u8>,
}

impl Setup {
    /// The bytes.
    ///
    /// # Errors
    /// As for [`encode`](crate::encode).
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = frame::encode(self)?;
        bytes.extend_from_slice(&self.config);
        Ok(bytes)
    }

    /// From the bytes.
    ///
    /// # Errors
    /// The bytes do not begin with a whole frame of a setup.
    pub fn decode(bytes: &[u8]) -> Result<Setup, Error> {
        let (setup, config) = frame::split(bytes)?;
        Ok(Setup {
            config: config.to_vec(),
            ..setup
        })
    }
}

/// Where things of the host are found in the share (paths relative to its root).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overlay {
    /// The root filesystem, for instance `rootfs`.
    pub rootfs: String,
    /// For each mount whose source is shared: its index in `mounts` of the configuration, and its
    /// source, for instance `mnt/0`.
    #[serde(default)]
    pub binds: Vec<(usize, String)>,
    /// For each bind mount of a character device: its index in `mounts`, and the device, of which
    /// the guest has one of its own.
    #[serde(default)]
    pub devices: Vec<(usize, Device)>,
    /// For each bind mount whose source an earlier one of the mounts provides: its index in `mounts`, and the source's
    /// path in the container.
    #[serde(default)]
    pub inner: Vec<(usize, String)>,
    /// Mounts of the host among those sources and below them, outer before inner, as far as they
    /// differ from what is mounted around them or may come to.
    #[serde(default)]
    pub mounts: Vec<HostMount>,
    /// The block devices of the host that the guest has as virtio-blk.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// The container has the guest's devices in place of those of `linux.devices` that the guest has not got.
    #[serde(default)]
    pub guests_devices: bool,
    /// `linux.seccomp`, compiled.
    #[serde(default)]
    pub seccomp: Option<Seccomp>,
    /// Added to `process.env`, in its form.
    #[serde(default)]
    pub env: Vec<String>,
    /// The caller's resource limits, which the init has where `process.rlimits` names none: soft and hard, the place
    /// in the list being `RLIMIT_*` of asm-generic/resource.h, and no limit `u64::MAX`.
    #[serde(default)]
    pub limits: Vec<(u64, u64)>,
    /// Kernel parameters of the host, as paths below `/proc/sys` with their values. The guest's are not to be less.
    #[serde(default)]
    pub parameters: Vec<(String, String)>,
    /// The maps of a user namespace of the host that the configuration names: the guest's has them in place of those of
    /// the configuration.
    #[serde(default)]
    pub id_maps: Option<IdMaps>,
}

/// The maps of a user namespace, as `/proc/PID/uid_map` and `gid_map` show them (`user_namespaces(7)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// Of users.
    pub uids: String,
    /// Of groups.
    pub gids: String,
}

/// A mount of the host that the guest sees files of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMount {
    /// Where it is in the share, for instance `mnt/0` or `mnt/0/below`.
    pub path: String,
    /// `MOUNT_ATTR_*` (`mount_setattr(2)`) that it has on the host.
    pub attributes: u64,
}

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its number on the host, as the configuration has it.
    pub device: Device,
    /// The serial number under which the guest finds it.
    pub serial: String,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// A seccomp filter, ready for `seccomp(SECCOMP_SET_MODE_FILTER)`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seccomp {
    /// `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
    pub flags: u64,
    /// The program: each element is one `struct sock_filter` (linux/filter.h) in its memory layout,
    /// read as a little-endian number.
    pub program: Vec<u64>,
}

/// The two vsock ports of a stream: the one in the guest that the agent dials from, and the one on
/// the host (CID 2) that it dials. The host draws both at random and accepts no connection between
/// others: any process of the guest may open a vsock socket, and only the agent knows these ports.
/// They must not be told to a process of a container before the stream is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// In the guest.
    pub guest: u32,
    /// On the host.
    pub host: u32,
}

/// The streams that the agent dials, one raw stream per descriptor. None stands for
/// `/dev/null`. With `process.terminal`, `stdin` feeds the terminal, `stdout` carries all its
/// output and `stderr` is None; when `stdin` ends, the terminal hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stdio {
    /// Host to guest. Without a terminal the host sends what it is asked for: on the same stream, each time
    /// as the number of bytes, a little-endian `u32`. It sends as many or, if fewer are there, those.
    #[serde(default)]
    pub stdin: Option<Ports>,
    /// Guest to host.
    #[serde(default)]
    pub stdout: Option<Ports>,
    /// Guest to host.
    #[serde(default)]
    pub stderr: Option<Ports>,
}

/// A descriptor in addition to the standard streams, by the ports of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extra {
    /// Host to guest: a pipe to read from. As [`Stdio::stdin`].
    In(Ports),
    /// Guest to host: a pipe to write to.
    Out(Ports),
    /// Both ways: a stream socket.
    Both(Ports),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FIRST, INIT};
    use std::fmt;

    fn json_round_trip<T>(value: &T, json: &str)
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + fmt::Debug,
    {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
    }

    #[test]
    fn requests_have_a_stable_form() {
        json_round_trip(
            &Request {
                id: 7,
                container: FIRST,
                body: RequestBody::Start(Network::default()),
            },
            r#"{"id":7,"container":0,"body":{"Start":{"interfaces":[],"settings":[],"requests":[],"names":false}}}"#,
        );
        json_round_trip(
            &Request {
                id: 8,
                container: 3,
                body: RequestBody::Kill {
                    process: INIT,
                    signal: 15,
                    all: false,
                },
            },
            r#"{"id":8,"container":3,"body":{"Kill":{"process":0,"signal":15,"all":false}}}"#,
        );
        json_round_trip(
            &Request {
                id: 9,
                container: FIRST,
                body: RequestBody::Connect {
                    address: "[::1]:80".parse().unwrap(),
                    ports: Ports { guest: 5, host: 6 },
                },
            },
            r#"{"id":9,"container":0,"body":{"Connect":{"address":"[::1]:80","ports":{"guest":5,"host":6}}}}"#,
        );
        json_round_trip(
            &Request {
                id: 1,
                container: FIRST,
                body: RequestBody::Create(create()),
            },
            concat!(
                r#"{"id":1,"container":0,"body":{"Create":{"cgroup":"a/b","own_pids":true,"#,
                r#""joins":[{"container":3,"namespaces":1073741824}],"terminal":false,"#,
                r#""plain_newlines":false,"notify":true,"stdio":{"stdin":null,"#,
                r#""stdout":{"guest":70000,"host":80000},"stderr":{"guest":70001,"host":80001}},"#,
                r#""extra":[{"In":{"guest":5,"host":6}},{"Both":{"guest":7,"host":8}}]}}}"#
            ),
        );
        json_round_trip(
            &Setup {
                config: Vec::new(),
                ..setup()
            },
            concat!(
                r#"{"id":"c1","bundle":"/b","overlay":{"rootfs":"rootfs","binds":[[3,"mnt/0"]],"#,
                r#""devices":[[4,{"major":1,"minor":3}]],"inner":[[5,"/data/below"]],"mounts":[{"path":"mnt/0/x","attributes":2}],"#,
                r#""disks":[{"device":{"major":8,"minor":0},"serial":"disk0"}],"#,
                r#""guests_devices":true,"seccomp":{"flags":2,"program":[6]},"env":["A=b"],"limits":[[0,18446744073709551615]],"parameters":[["vm/max_map_count","65530"]],"id_maps":{"uids":"0 100000 65536\n","gids":"0 200000 65536\n"}}}"#,
            ),
        );
    }

    fn create() -> Create {
        let ports = |last: u32| Ports {
            guest: 70_000 + last,
            host: 80_000 + last,
        };
        Create {
            cgroup: "a/b".to_owned(),
            own_pids: true,
            joins: vec![Joined {
                container: 3,
                namespaces: 0x4000_0000,
            }],
            terminal: false,
            plain_newlines: false,
            notify: true,
            stdio: Stdio {
                stdin: None,
                stdout: Some(ports(0)),
                stderr: Some(ports(1)),
            },
            extra: vec![
                Extra::In(Ports { guest: 5, host: 6 }),
                Extra::Both(Ports { guest: 7, host: 8 }),
            ],
            setup: Vec::new(),
            policy: Vec::new(),
        }
    }

    fn setup() -> Setup {
        Setup {
            id: "c1".to_owned(),
            bundle: "/b".to_owned(),
            overlay: Overlay {
                rootfs: "rootfs".to_owned(),
                binds: vec![(3, "mnt/0".to_owned())],
                guests_devices: true,
                seccomp: Some(Seccomp {
                    flags: 2,
                    program: vec![6],
                }),
                devices: vec![(4, Device { major: 1, minor: 3 })],
                inner: vec![(5, "/data/below".to_owned())],
                mounts: vec![HostMount {
                    path: "mnt/0/x".to_owned(),
                    attributes: 2,
                }],
                disks: vec![Disk {
                    device: Device { major: 8, minor: 0 },
                    serial: "disk0".to_owned(),
                }],
                env: vec!["A=b".to_owned()],
                limits: vec![(0, u64::MAX)],
                parameters: vec![("vm/max_map_count".to_owned(), "65530".to_owned())],
                id_maps: Some(IdMaps {
                    uids: "0 100000 65536\n".to_owned(),
                    gids: "0 200000 65536\n".to_owned(),
                }),
            },
            config: b" {\"ociVersion\":\"1.0\"}\n".to_vec(),
        }
    }

    #[test]
    fn a_setup_keeps_the_bytes_of_the_configuration() {
        let bytes = setup().encode().unwrap();
        assert!(bytes.ends_with(&setup().config));
        assert_eq!(Setup::decode(&bytes).unwrap(), setup());
        for end in 0..bytes.len() - setup().config.len() {
            assert!(Setup::decode(&bytes[..end]).is_err(), "{end}");
        }
    }

    /// One of each kind that has an attachment, and others between them.
    fn requests() -> Vec<Request> {
        let create = Create {
            setup: setup().encode().unwrap(),
            policy: b"\x04\x08\x00version".to_vec(),
            ..create()
        };
        let exec = Exec {
            process: 1,
            config: b"{\"cwd\":\"/\"}".to_vec(),
            policy: vec![0; 5],
            terminal: true,
            plain_newlines: true,
            cgroup: String::new(),
            stdio: Stdio::default(),
            extra: Vec::new(),
        };
        let bodies = [
            RequestBody::Create(create),
            RequestBody::Start(Network::default()),
            RequestBody::Exec(exec),
            RequestBody::Update {
                resources: Vec::new(),
            },
            RequestBody::Pause,
        ];
        let request = |(id, body)| Request {
            id,
            container: FIRST,
            body,
        };
        (1..).zip(bodies).map(request).collect()
    }

    #[test]
    fn any_split_of_the_stream_gives_the_same_requests_and_attachments() {
        let stream = requests().into_iter().map(|r| r.encode().unwrap());
        let stream: Vec<u8> = stream.flatten().collect();
        for piece in 1..=stream.len() {
            let mut decoder = Requests::default();
            let mut got = Vec::new();
            for bytes in stream.chunks(piece) {
                decoder.push(bytes);
                while let Some(request) = decoder.take().unwrap() {
                    got.push(request);
                }
            }
            assert_eq!(got, requests(), "pieces of {piece}");
        }
    }

    #[test]
    fn an_attachment_is_bounded_as_any_frame() {
        let request = |length| Request {
            id: 1,
            container: FIRST,
            body: RequestBody::Update {
                resources: vec![b' '; length],
            },
        };
        let longest = request(crate::MAX_FRAME);
        let mut decoder = Requests::default();
        decoder.push(&longest.encode().unwrap());
        assert_eq!(decoder.take().unwrap(), Some(longest));
        let too_long = request(crate::MAX_FRAME + 1);
        assert!(matches!(too_long.encode(), Err(Error::TooLong { .. })));
    }

    #[test]
    fn unknown_fields_are_tolerated() {
        let text = r#"{"id":7,"container":1,"new":[1],"body":{"Kill":{"signal":9,"all":true,"newer":{}}}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(
            request.body,
            RequestBody::Kill {
                process: INIT,
                signal: 9,
                all: true
            }
        );
    }
}
