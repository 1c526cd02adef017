//! What a guest says of itself, as the host prints it: the files of its cgroup as statistics, those of its processes as
//! the table of `ps`, and its last words.
//!
//! What must hold: no panic; what is printed is JSON, or a line for each process; it is bounded; it holds no control
//! character but the ends of lines, whatever the guest has said; and it is the same twice.

#![no_main]

use chiton_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use runtime::fuzz::verbs;

const FILES: [&str; 20] = [
    "cpu.stat",
    "cpu.pressure",
    "memory.current",
    "memory.max",
    "memory.peak",
    "memory.swap.current",
    "memory.swap.max",
    "memory.stat",
    "memory.pressure",
    "pids.current",
    "pids.max",
    "io.stat",
    "io.pressure",
    "hugetlb.2MB.current",
    "hugetlb.2MB.rsvd.current",
    "hugetlb.2MB.events",
    "hugetlb.1GB.current",
    "hugetlb.\u{1b}KB.current",
    "hugetlb.99999999MB.current",
    "cgroup.procs",
];

/// Which of [`PIECES`] is a process's `stat`.
const STAT: usize = 14;

/// What the kernel writes.
const PIECES: [&str; 24] = [
    "usage_usec 1\n",
    "user_usec 18446744073709551615\n",
    "nr_periods 4\n",
    "throttled_usec 9\n",
    "max\n",
    "0\n",
    "18446744073709551615\n",
    "18446744073709551616\n",
    "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n",
    "full avg10=0.00 ",
    "anon 100\nfile 2000\n",
    "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n",
    "8:16 \n",
    "max 6\n",
    "7 (sh) S 1 7 7 34816 7 4194560 208 0 0 0 6050 25 1 2 20 0 1 0 4100 4751360 842 18446744073709551615 1 1 0 0 0 0 65536 \
     4 0 1 0 0 17 3 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
    ") ",
    " (",
    "Uid:\t0\t1000\t0\t0\nGid:\t0\t5\t0\t0\n",
    "VmLck:\t 1 kB\nVmRSS:\t 3368 kB\n",
    "sh\0-c\0x\0",
    "\u{1b}[2J",
    "\u{9b}",
    " ",
    "-1",
];

const OPTIONS: [&str; 14] = [
    "-f",
    "-F",
    "-l",
    "u",
    "aux",
    "-ly",
    "-o",
    "pid,ppid,user:3,args=X",
    "--format=lstart,stime,cmd,comm,tty,stat",
    "w",
    "--no-headers",
    "-o",
    "pcpu,%cpu,pmem,%mem,rss,vsz,ni,pri,opri,psr,nlwp,c,sz,f,bsdtime,tname,ucmd",
    "user:4096,pid:0",
];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => last_words(&mut input),
        1 => processes(&mut input),
        _ => statistics(&mut input),
    }
});

fn text(input: &mut Input<'_>) -> String {
    let mut text = String::new();
    for _ in 0..input.byte() & 7 {
        match input.byte() {
            byte @ 0..=199 => text += PIECES[usize::from(byte) % PIECES.len()],
            200..=209 => text += &input.number().to_string(),
            210..=214 => text = text.repeat(usize::from(input.byte())),
            _ => {
                let length = usize::from(input.byte() & 63);
                text += &String::from_utf8_lossy(input.bytes(length));
            }
        }
        text.truncate(
            (0..=20_000.min(text.len()))
                .rfind(|at| text.is_char_boundary(*at))
                .unwrap(),
        );
    }
    text
}

fn statistics(input: &mut Input<'_>) {
    let files = |input: &mut Input<'_>| -> Vec<(String, String)> {
        let count = input.byte() & 15;
        (0..count)
            .map(|_| (input.pick(&FILES).to_owned(), text(input)))
            .collect()
    };
    let guest = files(input);
    let host = input.flag().then(|| files(input));
    let printed = verbs::statistics(&guest, host.as_deref());
    assert_eq!(printed, verbs::statistics(&guest, host.as_deref()));
    let printed = printed.unwrap_or_else(|error| format!("{error:?}"));
    serde_json::from_str::<serde_json::Value>(&printed).expect("it is JSON");
    assert!(!printed.chars().any(char::is_control), "{printed:?}");
    assert!(printed.len() < 2 << 20, "{} bytes", printed.len());
}

fn processes(input: &mut Input<'_>) {
    let count = input.byte() & 3;
    let options: Vec<String> = (0..count)
        .map(|_| match input.byte() {
            byte @ 0..=249 => OPTIONS[usize::from(byte) % OPTIONS.len()].to_owned(),
            _ => text(input),
        })
        .collect();
    let said: Vec<protocol::Process> = (0..input.byte() & 3).map(|_| process(input)).collect();
    let now = input.number();
    let printed = verbs::ps(&options, &said, now);
    assert_eq!(printed, verbs::ps(&options, &said, now));
    let Ok(printed) = printed else { return };
    let lines = printed.lines().count();
    let most = said.len() + 1;
    assert!(
        (said.len()..=most).contains(&lines),
        "{lines} lines for {} processes",
        said.len()
    );
    // Headers are the caller's own words.
    let of_guest = printed.lines().skip(lines - said.len());
    assert!(
        !of_guest.flat_map(str::chars).any(char::is_control),
        "{printed:?}"
    );
    assert!(printed.len() < 4 << 20, "{} bytes", printed.len());
}

/// A process as the kernel describes one, but for its name and its arguments; or any text.
fn process(input: &mut Input<'_>) -> protocol::Process {
    let pid = input.pick(&[7, 7, 7, 0, -1, i32::MAX]);
    if input.byte() < 200 {
        let rest = PIECES[STAT].split_once(") ").unwrap().1;
        return protocol::Process {
            pid,
            stat: format!("{pid} ({}) {rest}", text(input)),
            status: "Uid:\t0\t33\t0\t0\nGid:\t0\t5\t0\t0\nVmLck:\t 1 kB\n".to_owned(),
            command_line: text(input),
        };
    }
    protocol::Process {
        pid,
        stat: text(input),
        status: text(input),
        command_line: text(input),
    }
}

fn last_words(input: &mut Input<'_>) {
    let mut ring = Vec::new();
    let signature = if input.byte() < 250 {
        0x4347_4244
    } else {
        input.number32()
    };
    let (start, size) = (input.number32(), input.number32());
    for number in [signature, start, size] {
        ring.extend(number.to_le_bytes());
    }
    let copies = usize::from(input.byte());
    ring.extend(input.rest().repeat(copies + 1));
    // Half of all rings are full.
    if size & 1 == 1 {
        let length = u32::try_from(ring.len() - 12).unwrap();
        ring[8..12].copy_from_slice(&length.to_le_bytes());
        ring[4..8].copy_from_slice(&(start % (length + 1)).to_le_bytes());
    }
    let words = vmm::fuzz::last_words(&ring);
    assert_eq!(words, vmm::fuzz::last_words(&ring));
    assert!(words.len() <= 3 * (8 << 10), "{} bytes", words.len());
    assert!(
        !words.chars().any(|c| c != '\n' && c.is_control()),
        "{words:?}"
    );
}
