//! Sources of which the guest gets what it asks for.

use std::os::unix::fs::OpenOptionsExt;

use super::*;

fn on_demand(fd: impl Into<OwnedFd>) -> HostStream {
    HostStream {
        source: Some(Source::new(fd.into()).unwrap().on_demand()),
        sink: None,
    }
}

fn ask(driver: &mut Driver, count: u32) {
    assert_eq!(driver.write(&count.to_le_bytes(), 4), 4);
    driver.run();
}

#[test]
fn a_file_is_read_as_far_as_it_is_asked_for() {
    let bytes = pattern(10_000);
    let mut file = file_with(&bytes);
    let mut driver = Driver::new();
    driver.connect(on_demand(file.try_clone().unwrap()));
    assert!(driver.packet().is_none(), "it may be asked");
    assert_eq!(file.stream_position().unwrap(), 0);
    let mut got = 0;
    for count in [1, 7, 4096, 0, 5000] {
        ask(&mut driver, count);
        let data = driver.data();
        assert_eq!(data, &bytes[got..got + count as usize]);
        got += data.len();
        assert_eq!(file.stream_position().unwrap(), got as u64);
    }
    ask(&mut driver, u32::MAX);
    assert_eq!(driver.data(), &bytes[got..]);
    // That it is the end is found out by whoever asks on.
    assert!(driver.closed.is_empty());
    ask(&mut driver, 1);
    assert_eq!(
        driver.expect_op(op::SHUTDOWN).header.flags.get(),
        SHUTDOWN_BOTH
    );
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn a_pipe_gives_what_is_there_and_keeps_the_rest() {
    let (reader, writer) = pipe();
    let (mut driver, mut writer) = (Driver::new(), File::from(writer));
    let callers = reader.try_clone().unwrap();
    driver.connect(on_demand(reader));
    writer.write_all(b"one").unwrap();
    driver.run();
    assert!(driver.data().is_empty());
    ask(&mut driver, 100);
    assert_eq!(driver.data(), b"one");
    writer.write_all(b"two").unwrap();
    driver.run();
    assert!(driver.data().is_empty(), "it has got something already");
    assert_eq!(available(&callers), b"two");
    // Nothing is there yet.
    ask(&mut driver, 2);
    assert!(driver.data().is_empty());
    writer.write_all(b"three").unwrap();
    driver.wait();
    assert_eq!(driver.data(), b"th");
    assert_eq!(available(&callers), b"ree");
    drop(writer);
    driver.wait();
    driver.expect_op(op::SHUTDOWN);
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn the_end_of_a_pipe_is_told_to_who_asks_for_nothing() {
    let (reader, writer) = pipe();
    let (mut driver, mut writer) = (Driver::new(), File::from(writer));
    driver.connect(on_demand(reader));
    driver.run();
    assert!(driver.packet().is_none());
    writer.write_all(b"four").unwrap();
    drop(writer);
    driver.wait();
    assert!(driver.packet().is_none(), "there is something to be read");
    for expected in [&b"fou"[..], b"r"] {
        assert!(driver.closed.is_empty());
        ask(&mut driver, 3);
        assert_eq!(driver.data(), expected);
    }
    driver.expect_op(op::SHUTDOWN);
    assert_eq!(driver.closed, [PORT]);

    let (reader, writer) = pipe();
    let mut driver = Driver::new();
    driver.connect(on_demand(reader));
    driver.run();
    drop(writer);
    driver.wait();
    driver.expect_op(op::SHUTDOWN);
    assert_eq!(driver.closed, [PORT]);
}

#[test]
fn a_fifo_can_get_another_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    sys::make_fifo(&path);
    let open = |write: bool| {
        let mut options = std::fs::OpenOptions::new();
        options.read(!write).write(write);
        options.custom_flags(libc::O_NONBLOCK).open(&path).unwrap()
    };
    let reader = open(false);
    let mut driver = Driver::new();
    driver.connect(on_demand(reader));
    drop(open(true));
    driver.run();
    assert!(driver.packet().is_none());
    let mut writer = open(true);
    writer.write_all(b"later").unwrap();
    ask(&mut driver, 10);
    assert_eq!(driver.data(), b"later");
}

#[test]
fn a_guest_that_asks_for_nonsense_gets_what_it_says() {
    let bytes = pattern(1 << 20);
    let mut driver = Driver::new();
    driver.connect(on_demand(file_with(&bytes)));
    for nonsense in [&b"abc"[..], &[0; 4096], &[0xff; 7]] {
        driver.write(nonsense, nonsense.len());
        driver.run();
    }
    // Within its credit, which it renews here. The last number was the greatest there is.
    assert_eq!(driver.data(), bytes);
    driver.expect_op(op::SHUTDOWN);
    assert_eq!(driver.closed, [PORT]);
    driver.shutdown(SHUTDOWN_BOTH);
    driver.expect_op(op::RST);
}
