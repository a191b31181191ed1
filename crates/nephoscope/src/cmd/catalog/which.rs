//! `nephoscope catalog which`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use nephoscope_catalog::{Catalog, ObjectId, Placement, ReadError};
use serde::Serialize;

use crate::exit::{Failure, exit};
use crate::text::{escape, print, print_json};

use super::{Place, read_failed};

/// Say which package and version has a file or a page.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope catalog which --catalog ./cat ./nginx\n  \
    nephoscope catalog which --catalog ./cat 9af5…\n\n\
    Exit code 32: the catalog has no such file or page.")]
pub(super) struct WhichArgs {
    #[command(flatten)]
    place: Place,
    /// A file, or the BLAKE3 of a file or of a page's 4096 bytes in hex.
    #[arg(value_name = "FILE|DIGEST")]
    what: String,
}

/// One place where it stands.
#[derive(Serialize)]
struct Answer {
    object: ObjectId,
    #[serde(flatten)]
    placement: Placement,
    /// Numbers of the pages in the file, if a page was asked for or only pages were found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pages: Vec<u32>,
}

/// What was found, and how.
#[derive(Serialize)]
struct Found {
    /// `file`, `page`, or `some_pages` of a file that is not in the catalog as a whole.
    matched: &'static str,
    answers: Vec<Answer>,
}

pub(super) fn run(args: &WhichArgs) -> anyhow::Result<ExitCode> {
    let catalog = args.place.open()?;
    let found = match digest(&args.what) {
        Some(digest) => by_digest(&catalog, &digest),
        None => by_file(&catalog, Path::new(&args.what))?,
    };
    let found = found.map_err(|error| read_failed(&error))?;
    if args.place.json {
        print_json(&found)?;
    } else {
        show(&found)?;
    }
    if found.answers.is_empty() {
        return Err(exit(
            Failure::NoSuchItem,
            format!("{} is not in the catalog", args.what),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// 64 hex digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(Into::into)
}

fn by_digest(catalog: &Catalog, digest: &[u8; 32]) -> Result<Found, ReadError> {
    if let Some(object) = catalog.by_digest(digest)? {
        return Ok(Found {
            matched: "file",
            answers: answers(catalog, object, &[])?,
        });
    }
    let mut objects: BTreeMap<ObjectId, Vec<u32>> = BTreeMap::new();
    for page in catalog.pages(digest)? {
        objects.entry(page.object).or_default().push(page.number);
    }
    collect(catalog, "page", objects)
}

fn by_file(catalog: &Catalog, path: &Path) -> anyhow::Result<Result<Found, ReadError>> {
    let bytes = std::fs::read(path).map_err(|error| {
        let message = format!(
            "{}: {error}: give a file, or 64 hex digits of a digest",
            path.display()
        );
        exit(Failure::Usage, message)
    })?;
    Ok(by_contents(catalog, &bytes))
}

fn by_contents(catalog: &Catalog, bytes: &[u8]) -> Result<Found, ReadError> {
    if let Some(object) = catalog.by_digest(blake3::hash(bytes).as_bytes())? {
        return Ok(Found {
            matched: "file",
            answers: answers(catalog, object, &[])?,
        });
    }
    // Not as a whole: which files share most pages with it?
    let mut shared: BTreeMap<ObjectId, Vec<u32>> = BTreeMap::new();
    for (number, page) in (0u32..).zip(bytes.chunks(4096)) {
        let mut whole = page.to_vec();
        whole.resize(4096, 0);
        // A page that stands everywhere says nothing.
        let found = catalog.pages_counted(blake3::hash(&whole).as_bytes())?;
        if found.left_out == 0 {
            for page in found.refs {
                let pages = shared.entry(page.object).or_default();
                if pages.last() != Some(&number) {
                    pages.push(number);
                }
            }
        }
    }
    let most = shared.values().map(Vec::len).max().unwrap_or(0);
    shared.retain(|_, pages| pages.len() == most);
    collect(catalog, "some_pages", shared)
}

fn collect(
    catalog: &Catalog,
    matched: &'static str,
    objects: BTreeMap<ObjectId, Vec<u32>>,
) -> Result<Found, ReadError> {
    let mut all = Vec::new();
    for (object, pages) in objects {
        all.extend(answers(catalog, object, &pages)?);
    }
    Ok(Found {
        matched,
        answers: all,
    })
}

fn answers(catalog: &Catalog, object: ObjectId, pages: &[u32]) -> Result<Vec<Answer>, ReadError> {
    let placements = catalog.placements(object)?;
    Ok(placements
        .into_iter()
        .map(|placement| Answer {
            object,
            placement,
            pages: pages.to_vec(),
        })
        .collect())
}

fn show(found: &Found) -> anyhow::Result<()> {
    let mut text = String::new();
    if found.matched == "some_pages" && !found.answers.is_empty() {
        text.push_str("Not in the catalog as a whole. Sharing most pages with it:\n");
    }
    for answer in &found.answers {
        let who = answer.placement.package.as_ref().map_or_else(
            || format!("outside any package, in {}", answer.placement.origin),
            |p| {
                format!(
                    "{} {} {} (source {} {})",
                    p.name, p.version, p.architecture, p.source, p.source_version
                )
            },
        );
        let pages = match answer.pages.as_slice() {
            [] => String::new(),
            [one] => format!(", page {one}"),
            many => format!(", {} pages", many.len()),
        };
        text.push_str(&format!(
            "{}{pages}  {}\n",
            escape(&answer.placement.path),
            escape(&who)
        ));
    }
    print(&text)
}
