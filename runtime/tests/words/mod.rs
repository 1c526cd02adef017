//! What a verb says.

/// The words of lines in runc's text format; other lines as they are.
pub(crate) fn plain(text: &str) -> String {
    let words = |line: &str| {
        let quoted = line
            .strip_prefix("time=\"")
            .and_then(|rest| rest.split_once(" msg="));
        // Quoted as in JSON, as far as these tests go.
        quoted.map_or_else(
            || line.to_owned(),
            |(_, quoted)| serde_json::from_str(quoted).unwrap(),
        )
    };
    text.lines().map(|line| words(line) + "\n").collect()
}
