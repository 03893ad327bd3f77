//! Writes the normal inputs of every target into its corpus: `seeds FOLDER`.

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).expect("usage: seeds FOLDER");
    for target in &openwit_fuzz::TARGETS {
        let folder = std::path::Path::new(&folder).join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (number, input) in (target.normal)().iter().enumerate() {
            std::fs::write(folder.join(format!("normal-{number:02}")), input)?;
        }
    }
    Ok(())
}
