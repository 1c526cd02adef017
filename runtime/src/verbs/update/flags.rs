//! The flags of `update` as a `linux.resources` object.

use std::num::ParseIntError;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::cli;
use crate::verbs::error::Error;

/// What the flags say. Like in a file, what is null says nothing.
pub(super) fn resources(args: &cli::Update) -> Result<Value, Error> {
    Ok(json!({
        "blockIO": {"weight": args.blkio_weight},
        "cpu": {
            "cpus": args.cpuset_cpus,
            "mems": args.cpuset_mems,
            "idle": number::<i64>("cpu-idle", &args.cpu_idle)?,
            "burst": number::<u64>("cpu-burst", &args.cpu_burst)?,
            "period": number::<u64>("cpu-period", &args.cpu_period)?,
            "realtimePeriod": number::<u64>("cpu-rt-period", &args.cpu_rt_period)?,
            "shares": number::<u64>("cpu-share", &args.cpu_share)?,
            "quota": number::<i64>("cpu-quota", &args.cpu_quota)?,
            "realtimeRuntime": number::<i64>("cpu-rt-runtime", &args.cpu_rt_runtime)?,
        },
        "memory": {
            "limit": bytes("memory", &args.memory)?,
            "swap": bytes("memory-swap", &args.memory_swap)?,
            "kernel": bytes("kernel-memory", &args.kernel_memory)?,
            "kernelTCP": bytes("kernel-memory-tcp", &args.kernel_memory_tcp)?,
            "reservation": bytes("memory-reservation", &args.memory_reservation)?,
        },
        "pids": {"limit": args.pids_limit},
    }))
}

/// What a flag says, if it says something.
fn said(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn number<T: FromStr<Err = ParseIntError>>(
    flag: &'static str,
    text: &Option<String>,
) -> Result<Option<T>, Error> {
    let parsed = said(text).map(str::parse::<T>).transpose();
    parsed.map_err(|e: ParseIntError| Error::Value(flag, e.to_string()))
}

/// Bytes; -1 means no limit.
fn bytes(flag: &'static str, text: &Option<String>) -> Result<Option<i64>, Error> {
    let of = |text| match text {
        "-1" => Ok(-1),
        _ => size(text).ok_or_else(|| Error::Value(flag, format!("invalid size: '{text}'"))),
    };
    said(text).map(of).transpose()
}

/// A number with a unit of powers of 1024, as Docker's go-units reads it: `512m`, `1.5 GiB`, `64kb`, `1000b`.
fn size(text: &str) -> Option<i64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, unit) = text.split_at(end);
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let prefix = match unit.as_str() {
        "b" => "",
        unit => unit
            .strip_suffix("ib")
            .or_else(|| unit.strip_suffix('b'))
            .unwrap_or(unit),
    };
    let power = ["", "k", "m", "g", "t", "p"]
        .iter()
        .position(|known| *known == prefix && !(unit == "ib" && prefix.is_empty()))?;
    let bytes = number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(power).ok()?);
    // 2^63, exactly: below it every whole number fits.
    let fits = bytes < 9_223_372_036_854_775_808.0;
    // Fractions of a byte are cut off.
    #[allow(clippy::cast_possible_truncation)]
    fits.then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("1000b", Some(1000)),
            ("64k", Some(64 << 10)),
            ("64KB", Some(64 << 10)),
            ("512m", Some(512 << 20)),
            ("1.5 GiB", Some(3 << 29)),
            ("2T", Some(2 << 40)),
            ("1p", Some(1 << 50)),
            ("", None),
            ("-2", None),
            ("m", None),
            ("ib", None),
            ("5ib", None),
            ("5x", None),
            ("5mm", None),
            ("1e3", None),
            ("inf", None),
            ("9000p", None),
            ("1.2.3", None),
        ] {
            assert_eq!(size(text), expected, "{text:?}");
        }
    }

    fn of(args: &[&str]) -> Result<Value, String> {
        let line = ["chiton", "update", "c"].iter().chain(args);
        let cli = cli::parse(line.map(Into::into)).ok().unwrap();
        let Some(cli::Verb::Update(args)) = cli.verb else {
            panic!("no update");
        };
        resources(&args).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_are_properties() {
        let found = of(&[
            "--memory=64m",
            "--memory-swap=-1",
            "--cpu-quota=-1",
            "--cpu-share=5",
            "--cpuset-cpus=0-1",
            "--pids-limit=-1",
            "--cpu-idle=0",
        ])
        .unwrap();
        assert_eq!(found["memory"]["limit"], 64 << 20);
        assert_eq!(found["memory"]["swap"], -1);
        assert_eq!(found["memory"]["reservation"], Value::Null);
        assert_eq!(found["cpu"]["quota"], -1);
        assert_eq!(found["cpu"]["shares"], 5);
        assert_eq!(found["cpu"]["cpus"], "0-1");
        assert_eq!(found["cpu"]["idle"], 0);
        assert_eq!(found["pids"]["limit"], -1);
        assert_eq!(
            of(&["--memory=lots"]),
            Err("invalid value for memory: invalid size: 'lots'".to_owned())
        );
        let error = of(&["--cpu-share=-1"]).unwrap_err();
        assert!(
            error.starts_with("invalid value for cpu-share: "),
            "{error}"
        );
    }
}
