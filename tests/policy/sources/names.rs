//! What each file defines, and what it names of others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Imports;
use super::tokens::tokens;

type Segments = Vec<String>;
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// The modules of a program. The first is its root.
#[derive(Default)]
pub struct Program(Vec<Module>);

#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    defined: BTreeSet<String>,
    /// Names from elsewhere, with where they come from.
    used: BTreeMap<String, Segments>,
    /// Those of them that others may use.
    passed_on: BTreeSet<String>,
    /// Modules all of whose names are used.
    all_of: Vec<Segments>,
    /// Words in its code.
    words: BTreeSet<String>,
    paths: Vec<Segments>,
    /// Types that it adds methods to.
    extends: BTreeSet<String>,
}

impl Program {
    pub fn parse(file: &Path, folder: &Path, read: Read<'_>) -> Self {
        let mut program = Self::default();
        program.parse_file(file, folder, None, read);
        program
    }

    /// Which file imports from which.
    pub fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (number, module) in self.0.iter().enumerate() {
            let is_import =
                |name: &String| !module.passed_on.contains(name) || module.words.contains(name);
            let used = module.used.iter().filter(|(name, _)| is_import(name)).map(|(_, path)| path);
            let all = module.all_of.iter().flat_map(|target| {
                module
                    .words
                    .iter()
                    .map(move |word| [target.as_slice(), &[word.clone()][..]].concat())
            });
            let all: Vec<Segments> = all.collect();
            let of_module = imports.entry(module.file.clone()).or_default();
            for path in used.chain(&module.paths).chain(&all) {
                let Some((other, name)) = self.find(number, path, 0) else { continue };
                let is_part = module.extends.contains(&name);
                if *other.file != *module.file && !is_part {
                    of_module.insert(other.file.clone());
                }
            }
        }
        imports
    }

    fn parse_file(
        &mut self,
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
        read: Read<'_>,
    ) -> Option<usize> {
        let source = read(file)?;
        let number = self.add(file, parent);
        Parser { program: self, number, folder, read }.items(&tokens(&source));
        Some(number)
    }

    fn add(&mut self, file: &Path, parent: Option<usize>) -> usize {
        self.0.push(Module { file: file.to_owned(), parent, ..Module::default() });
        self.0.len() - 1
    }

    /// The module that defines what this path names in module `from`, and its name there.
    fn find(&self, from: usize, path: &[String], depth: usize) -> Option<(&Module, String)> {
        if depth > 20 {
            return None;
        }
        let (mut at, mut rest) = (from, path);
        match path.first()?.as_str() {
            "crate" => (at, rest) = (0, &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|it| it == "super") {
                    (at, rest) = (self.0[at].parent?, &rest[1..]);
                }
            }
            first if self.0[at].children.contains_key(first) => {}
            first => {
                let target = self.0[at].used.get(first).filter(|it| it[0] != *first)?;
                let whole: Segments = target.iter().chain(&path[1..]).cloned().collect();
                return self.find(from, &whole, depth + 1);
            }
        }
        while let Some((name, more)) = rest.split_first() {
            let module = &self.0[at];
            if let Some(child) = module.children.get(name) {
                (at, rest) = (*child, more);
                continue;
            }
            if module.defined.contains(name) {
                return Some((module, name.clone()));
            }
            if let Some(target) = module.used.get(name).filter(|it| it[0] != *name) {
                let whole: Segments = target.iter().chain(more).cloned().collect();
                return self.find(at, &whole, depth + 1);
            }
            return module.all_of.iter().find_map(|target| {
                let whole: Segments = target.iter().chain(rest).cloned().collect();
                self.find(at, &whole, depth + 1)
            });
        }
        None
    }
}

struct Parser<'a> {
    program: &'a mut Program,
    number: usize,
    folder: &'a Path,
    read: Read<'a>,
}

/// Where the bracket that opens here closes: one behind.
fn behind(tokens: &[String], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

fn is_word(token: &str) -> bool {
    token.starts_with(|it: char| it == '_' || it.is_ascii_alphabetic())
}

impl Parser<'_> {
    fn module(&mut self) -> &mut Module {
        &mut self.program.0[self.number]
    }

    fn items(&mut self, tokens: &[String]) {
        let (mut at, mut is_test, mut is_public) = (0, false, false);
        let token = |at: usize| tokens.get(at).map_or("", String::as_str);
        while at < tokens.len() {
            match token(at) {
                "#" => {
                    let open = at + 1 + usize::from(token(at + 1) == "!");
                    let end = behind(tokens, open);
                    let inside = &tokens[open + 1..end];
                    is_test |= ["cfg", "test"].contains(&token(open + 1))
                        && inside.iter().any(|it| it == "test");
                    at = end;
                    continue;
                }
                "pub" => {
                    is_public = true;
                    at = if token(at + 1) == "(" { behind(tokens, at + 1) } else { at + 1 };
                    continue;
                }
                _ if is_test => {
                    while !["{", ";"].contains(&token(at)) && at < tokens.len() {
                        at = if ["(", "["].contains(&token(at)) {
                            behind(tokens, at)
                        } else {
                            at + 1
                        };
                    }
                    at = behind(tokens, at);
                }
                "mod" if is_word(token(at + 1)) => at = self.child(tokens, at + 1),
                "use" => at = self.use_tree(tokens, at + 1, &[], is_public) + 1,
                "impl" => at = self.implementation(tokens, at + 1),
                word if is_word(word) => at = self.word(tokens, at),
                _ => at += 1,
            }
            (is_test, is_public) = (false, false);
        }
    }

    /// A module begins with its name. Returns where it ends.
    fn child(&mut self, tokens: &[String], at: usize) -> usize {
        let (name, number) = (&tokens[at], self.number);
        let folder = self.folder.join(name);
        let child = if tokens[at + 1] == "{" {
            let file = self.module().file.clone();
            let child = self.program.add(&file, Some(number));
            let inside = &tokens[at + 2..behind(tokens, at + 1) - 1];
            let program = &mut *self.program;
            Parser { program, number: child, folder: &folder, read: self.read }.items(inside);
            Some(child)
        } else {
            let files = [folder.with_extension("rs"), folder.join("mod.rs")];
            let read = self.read;
            files.iter().find_map(|file| self.program.parse_file(file, &folder, Some(number), read))
        };
        if let Some(child) = child {
            self.module().children.insert(name.clone(), child);
        }
        if tokens[at + 1] == "{" { behind(tokens, at + 1) } else { at + 2 }
    }

    /// A part of a `use` begins. Returns where it ends.
    fn use_tree(
        &mut self,
        tokens: &[String],
        mut at: usize,
        before: &[String],
        is_public: bool,
    ) -> usize {
        let mut path = before.to_vec();
        loop {
            match tokens[at].as_str() {
                "{" => {
                    at += 1;
                    while tokens[at] != "}" {
                        at = self.use_tree(tokens, at, &path, is_public);
                        at += usize::from(tokens[at] == ",");
                    }
                    return at + 1;
                }
                "*" => {
                    self.module().all_of.push(path);
                    return at + 1;
                }
                "::" => at += 1,
                word => {
                    path.push(word.to_owned());
                    at += 1;
                    if tokens[at] != "::" {
                        break;
                    }
                }
            }
        }
        if path.last().is_some_and(|it| it == "self") {
            path.pop();
        }
        let mut name = path.last().cloned().unwrap_or_default();
        if tokens[at] == "as" {
            name.clone_from(&tokens[at + 1]);
            at += 2;
        }
        if is_public {
            self.module().passed_on.insert(name.clone());
        }
        self.module().used.insert(name, path);
        at
    }

    /// An `impl` begins. Returns where its type does.
    fn implementation(&mut self, tokens: &[String], mut at: usize) -> usize {
        let mut depth = 0;
        loop {
            depth += i32::from(tokens[at] == "<") - i32::from(tokens[at] == ">");
            if depth == 0 {
                break;
            }
            at += 1;
        }
        at += usize::from(tokens[at] == ">");
        let head = tokens[at..].iter().take_while(|it| *it != "{");
        if !head.clone().any(|it| it == "for") {
            self.module().extends.insert(tokens[at].clone());
        }
        at
    }

    /// A word or a path. Returns where it ends.
    fn word(&mut self, tokens: &[String], mut at: usize) -> usize {
        const DEFINING: [&str; 8] =
            ["struct", "enum", "trait", "fn", "const", "static", "type", "union"];
        let follows = at > 0 && tokens[at - 1] == "::";
        let before = at.checked_sub(1).map_or("", |before| tokens[before].as_str());
        if DEFINING.contains(&before) {
            self.module().defined.insert(tokens[at].clone());
        }
        let mut path = vec![tokens[at].clone()];
        at += 1;
        while tokens.get(at).is_some_and(|it| it == "::")
            && tokens.get(at + 1).is_some_and(|it| is_word(it))
        {
            path.push(tokens[at + 1].clone());
            at += 2;
        }
        if !follows {
            self.module().words.insert(path[0].clone());
            if path.len() > 1 {
                self.module().paths.push(path);
            }
        }
        at
    }
}
