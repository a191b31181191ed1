//! Everything known of one page, for `why`.

use nephoscope_guest::{PageId, Privilege};
use nephoscope_inventory::{Names, Place, Verdict};
use nephoscope_pipeline::Session;

use crate::control::{PageEvidence, PlaceEvidence};

/// The evidence, if there is such a page.
pub(super) fn of(session: &Session, page: PageId) -> Option<PageEvidence> {
    let record = session.inventory().page(page)?;
    let mut evidence = PageEvidence {
        page: page.0,
        verdict: record.verdict.word().to_owned(),
        at_ns: record.at_ns,
        va: record.va.0,
        gpa: record.gpa.map(|gpa| gpa.0),
        generation: record.generation,
        digest: hex(&record.digest),
        privilege: match record.privilege {
            Privilege::User => "user".into(),
            Privilege::Supervisor => "supervisor".into(),
        },
        bits: Some(record.bits),
        first: Some(record.first),
        executed: record.executed.clone(),
        places: record
            .verdict
            .places()
            .iter()
            .flat_map(|place| places(session.names(), place))
            .collect(),
        left_out: record.verdict.left_out(),
        spaces: session
            .inventory()
            .spaces()
            .filter_map(|space| Some((space.id.0, space.pages.get(&page)?.map(|va| va.0))))
            .collect(),
        bytes: session.kept_bytes(page).map(|bytes| hex(&bytes[..])),
        ..PageEvidence::default()
    };
    match &*record.verdict {
        Verdict::Identified(identified) => {
            evidence.executed_only = identified.executed_only;
            evidence.sites = identified
                .sites
                .iter()
                .map(|(kind, sites, bytes)| (word(*kind), *sites, *bytes))
                .collect();
        }
        Verdict::Modified(modified) => {
            evidence.differences = modified
                .differences
                .iter()
                .map(|d| (d.offset, hex(&d.before), hex(&d.after)))
                .collect();
            if let Some(bytes) = session.kept_bytes(page) {
                let mut nearest = bytes.to_vec();
                for difference in &modified.differences {
                    let at = usize::from(difference.offset);
                    if let Some(range) = nearest.get_mut(at..at + difference.before.len()) {
                        range.copy_from_slice(&difference.before);
                    }
                }
                evidence.nearest_bytes = Some(hex(&nearest));
            }
        }
        Verdict::Unknown(unknown) => evidence.origin = unknown.origin.clone(),
    }
    Some(evidence)
}

fn places(names: &dyn Names, place: &Place) -> Vec<PlaceEvidence> {
    names
        .placements(place.object)
        .into_iter()
        .map(|(path, candidate)| PlaceEvidence {
            path,
            package: candidate.package,
            source: candidate.source,
            version: candidate.version,
            link: place.link,
        })
        .collect()
}

/// A site kind as reports write it.
fn word(kind: impl serde::Serialize) -> String {
    serde_json::to_value(kind)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
