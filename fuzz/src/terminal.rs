//! What reaches a terminal: reports and evidence with anything in them, and both ends of the watch's socket.

use std::sync::OnceLock;

use arbitrary::Unstructured;
use nephoscope::fuzzing;
use serde_json::Value;

const REPORT: &str = include_str!("../../crates/nephoscope/tests/canned/report.json");
const PAGES: &str = include_str!("../../crates/nephoscope/tests/canned/pages.json");

/// A report of few address spaces, each of few modules.
fn report_base() -> &'static Value {
    static BASE: OnceLock<Value> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut report: Value = serde_json::from_str(REPORT).expect("the canned report");
        shorten(&mut report, 3);
        report
    })
}

fn shorten(value: &mut Value, most: usize) {
    match value {
        Value::Array(items) => {
            items.truncate(most);
            items.iter_mut().for_each(|item| shorten(item, most));
        }
        Value::Object(fields) => fields.values_mut().for_each(|field| shorten(field, most)),
        _ => {}
    }
}

fn evidence_base() -> &'static [Value] {
    static BASE: OnceLock<Vec<Value>> = OnceLock::new();
    BASE.get_or_init(|| {
        let pages: serde_json::Map<String, Value> = serde_json::from_str(PAGES).expect("the canned pages");
        pages.into_iter().map(|(_, page)| page).collect()
    })
}

/// How many values there are in this one.
fn inner(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    }
}

/// Changes values somewhere in a document, as the input says; a number or a text in the place of another, mostly.
fn edit(value: &mut Value, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    for _ in 0..input.int_in_range(1..=6_u8)? {
        let mut place = &mut *value;
        while inner(place) > 0 {
            let pick = usize::from(input.arbitrary::<u8>()?) % inner(place);
            place = match place {
                Value::Array(items) => &mut items[pick],
                Value::Object(fields) => fields.values_mut().nth(pick).expect("a field"),
                other => other,
            };
            // An array as a whole is a place too.
            if place.is_array() && input.arbitrary::<u8>()? < 24 {
                break;
            }
        }
        let new = match input.arbitrary::<u8>()? % 6 {
            0 => Value::Null,
            1 => Value::from(input.arbitrary::<u64>()?),
            2 => {
                let len = input.int_in_range(0..=48)?;
                let raw = input.bytes(len.min(input.len()))?;
                Value::from(String::from_utf8_lossy(raw).into_owned())
            }
            3 => Value::from("\u{1b}]0;\u{202e}\u{200b}a\u{7f}\u{9b}0m\n\r\t\u{4e00}"),
            4 => {
                let again = place.clone();
                Value::Array(vec![again; input.int_in_range(0..=3)?])
            }
            _ => Value::from(
                [
                    "user",
                    "modified",
                    "unknown",
                    "identified",
                    "blind",
                    "90",
                    "e9000000",
                ][usize::from(input.arbitrary::<u8>()?) % 7],
            ),
        };
        let kept = match (&*place, &new) {
            // Another type is refused as a whole: once in a while is enough.
            (Value::String(_), Value::String(_))
            | (Value::Number(_), Value::Number(_))
            | (Value::Array(_), Value::Array(_)) => true,
            _ => input.arbitrary::<u8>()? < 8,
        };
        if kept {
            *place = new;
        }
    }
    Ok(())
}

/// `ps` and `findings` of a report.
pub fn report(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let columns = 80 + usize::from(how >> 3);
    if how & 1 == 0 {
        fuzzing::report(bytes, columns, how & 2 == 0);
        return;
    }
    let mut report = report_base().clone();
    let _ = edit(&mut report, &mut Unstructured::new(bytes));
    let json = serde_json::to_vec(&report).expect("JSON");
    fuzzing::report(&json, columns, how & 2 == 0);
}

/// `why` of a page.
pub fn evidence(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let columns = 80 + usize::from(how >> 3);
    let base = evidence_base();
    let mut page = base[usize::from(how & 7) % base.len()].clone();
    let _ = edit(&mut page, &mut Unstructured::new(bytes));
    let json = serde_json::to_vec(&page).expect("JSON");
    fuzzing::evidence(&json, REPORT.as_bytes(), columns);
}

/// Text, escaped, wrapped and cut.
pub fn escape(bytes: &[u8]) {
    fuzzing::escaped(&String::from_utf8_lossy(bytes));
}

/// What a client is answered.
pub fn client(bytes: &[u8]) {
    fuzzing::client(bytes);
}

/// What a watch is asked: at most 64 questions, so that their answers fit the socket.
pub fn server(bytes: &[u8]) {
    let end = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(63)
        .map_or(bytes.len(), |(at, _)| at);
    fuzzing::server(&bytes[..end]);
}
