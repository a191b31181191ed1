//! Memory that the disk's server can map as well: it has to be shared (QEMU, docs/system/devices/vhost-user.rst, "Shared memory object").

use super::options::Options;

/// Bytes of a machine without `-m` (QEMU, `MACHINE_CLASS::default_ram_size` of the PC).
const DEFAULT_BYTES: u64 = 128 << 20;

/// What is added for it, after the rest of the command line; nothing if whoever wrote that has seen to it.
pub(super) fn shared(arguments: &[(String, String)]) -> Result<Vec<String>, String> {
    let values = |name: &'static str| {
        arguments
            .iter()
            .filter(move |(option, _)| option == name)
            .map(|(_, value)| value.as_str())
    };
    let backends: Vec<Options> = values("object")
        .map(|value| Options::parse(value, "qom-type"))
        .filter(|object| {
            object
                .get("qom-type")
                .is_some_and(|kind| kind.starts_with("memory-backend-"))
        })
        .collect();
    let machines = values("machine").chain(values("M"));
    let named = machines
        .map(|value| Options::parse(value, "type"))
        .filter_map(|machine| machine.get("memory-backend").map(str::to_owned));
    let nodes = values("numa").map(|value| Options::parse(value, "type"));
    let of_nodes = nodes.filter_map(|node| node.get("memdev").map(str::to_owned));
    let used: Vec<String> = named.chain(of_nodes).collect();
    for id in &used {
        let backend = backends.iter().find(|backend| backend.get("id") == Some(id));
        if backend.is_none_or(|backend| backend.is_on("share") != Some(true)) {
            return Err(format!(
                "the memory {id} is not shared, and files are watched by way of that: add share=on to its -object"
            ));
        }
    }
    if !used.is_empty() {
        return Ok(Vec::new());
    }
    if values("numa").next().is_some() {
        return Err(
            "with -numa, give each node a memdev with share=on: files are watched by way of shared memory"
                .to_owned(),
        );
    }
    if values("mem-path").next().is_some() {
        return Err(
            "-mem-path gives memory that is not shared: use -object memory-backend-file,id=ram,mem-path=…,size=…,share=on and \
             -machine memory-backend=ram"
                .to_owned(),
        );
    }
    let mut bytes = DEFAULT_BYTES;
    for value in values("m") {
        if let Some(size) = Options::parse(value, "size").get("size") {
            bytes = size_of(size).ok_or_else(|| format!("-m {value} gives no size that is understood"))?;
        }
    }
    Ok(vec![
        "-object".to_owned(),
        format!("memory-backend-memfd,id=nephoscope-ram,size={bytes},share=on"),
        "-machine".to_owned(),
        "memory-backend=nephoscope-ram".to_owned(),
    ])
}

/// Bytes of a size; without a suffix it is in MiB (QEMU, `-m`).
fn size_of(text: &str) -> Option<u64> {
    let number: String = text
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let shift = match text.get(number.len()..)?.to_ascii_lowercase().as_str() {
        "b" => 0,
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).filter(|bytes| *bytes > 0);
    }
    // 1.5G: exact where it matters, as QEMU rounds to pages.
    let (whole, part) = number.split_once('.')?;
    let digits = u32::try_from(part.len())
        .ok()
        .filter(|digits| (1..=9).contains(digits))?;
    let scale = 10_u64.pow(digits);
    let all = whole
        .parse::<u64>()
        .ok()?
        .checked_mul(scale)?
        .checked_add(part.parse().ok()?)?;
    let bytes = u128::from(all) * (1_u128 << shift) / u128::from(scale);
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<String, String> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        shared(&pairs).map(|added| added.join(" "))
    }

    #[test]
    fn memory_is_shared_and_as_large_as_it_was_to_be() {
        let added = |bytes: u64| {
            Ok(format!(
                "-object memory-backend-memfd,id=nephoscope-ram,size={bytes},share=on -machine memory-backend=nephoscope-ram"
            ))
        };
        assert_eq!(of(&[]), added(128 << 20));
        assert_eq!(of(&[("m", "1G")]), added(1 << 30));
        assert_eq!(of(&[("m", "512")]), added(512 << 20));
        assert_eq!(
            of(&[("m", "1.5G,slots=2,maxmem=4G"), ("machine", "q35,accel=tcg")]),
            added(3 << 29)
        );
        assert_eq!(of(&[("m", "1G"), ("m", "size=2048M")]), added(2 << 30));
    }

    #[test]
    fn memory_of_ones_own_has_to_be_shared() {
        let ram = |share| format!("memory-backend-ram,id=ram,size=1G{share}");
        let machine = ("machine", "q35,memory-backend=ram");
        assert_eq!(of(&[("object", &ram(",share=on")), machine]), Ok(String::new()));
        assert!(
            of(&[("object", &ram("")), machine])
                .unwrap_err()
                .contains("share=on")
        );
        let numa = ("numa", "node,memdev=ram");
        assert_eq!(of(&[("object", &ram(",share=on")), numa]), Ok(String::new()));
        assert!(of(&[("object", &ram(",share=off")), numa]).is_err());
        assert!(of(&[("numa", "node,mem=512")]).is_err());
        assert!(of(&[("mem-path", "/dev/hugepages")]).is_err());
        assert!(of(&[("m", "a lot")]).is_err());
    }
}
