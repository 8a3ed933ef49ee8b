# The module system: options with types, definitions with conditions and priorities, freeform submodules. Messages have the real
# one's words where tests look at them.
{ lib }:
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatMap
    elem
    elemAt
    filter
    foldl'
    functionArgs
    genList
    head
    isAttrs
    isFunction
    isInt
    isList
    isPath
    isString
    length
    mapAttrs
    match
    toString
    ;
  inherit (lib)
    concatMapStringsSep
    concatStringsSep
    hasPrefix
    isDerivation
    nameValuePair
    optional
    optionals
    recursiveUpdate
    unique
    ;

  # Markers around definitions.
  isMarked = kind: value: isAttrs value && value._type or null == kind;
  mark = _type: fields: fields // { inherit _type; };
  mkIf = condition: content: mark "if" { inherit condition content; };
  mkMerge = contents: mark "merge" { inherit contents; };
  mkOverride = priority: content: mark "override" { inherit priority content; };
  mkOption = mark "option";

  show = concatStringsSep ".";
  showValue =
    value:
    let
      shown = builtins.tryEval (builtins.toJSON value);
    in
    if shown.success then shown.value else "<value>";

  # A type says what it is called, which values it takes, and what several definitions come to.
  mkType = name: check: merge: { inherit name check merge; };

  # One value, however often it is written down.
  same =
    at: defs:
    if length (unique (map (def: def.value) defs)) == 1 then
      (head defs).value
    else
      throw "The option `${show at}' has conflicting definition values:${concatMapStringsSep "" (def: "\n- In `${def.file}': ${showValue def.value}") defs}";

  scalar = name: check: mkType name check same;

  either = a: b: mkType "${a.name} or ${b.name}" (value: a.check value || b.check value) (at: defs: if all (def: a.check def.value) defs then a.merge at defs else b.merge at defs);

  types = rec {
    bool = scalar "boolean" builtins.isBool;
    int = scalar "signed integer" isInt;
    float = scalar "floating point number" builtins.isFloat;
    str = scalar "string" isString;
    raw = scalar "raw value" (_: true);
    nonEmptyStr = scalar "non-empty string" (value: isString value && match "[ \t\n]*" value == null);
    strMatching = pattern: scalar "string matching the pattern ${pattern}" (value: isString value && match pattern value != null);
    enum = values: scalar "one of ${concatMapStringsSep ", " showValue values}" (value: elem value values);
    ints = {
      positive = scalar "positive integer, meaning >0" (value: isInt value && value > 0);
      unsigned = scalar "unsigned integer, meaning >=0" (value: isInt value && value >= 0);
    };
    port = scalar "16 bit unsigned integer; between 0 and 65535 (both inclusive)" (value: isInt value && value >= 0 && value <= 65535);
    lines = mkType "strings concatenated with \"\\n\"" isString (_: defs: concatMapStringsSep "\n" (def: def.value) defs);
    package = scalar "package" isDerivation;
    path = scalar "absolute path" isAbsolute;
    pathInStore = scalar "path in the Nix store" (value: isAbsolute value && hasPrefix "${builtins.storeDir}/" (toString value));
    externalPath = scalar "absolute path not in the Nix store" (value: isString value && isAbsolute value && !hasPrefix builtins.storeDir value);
    anything = mkType "anything" (_: true) (at: defs: if all (def: isAttrs def.value && !isDerivation def.value) defs then (attrsOf anything).merge at defs else if all (def: isList def.value) defs then concatMap (def: def.value) defs else same at defs);
    inherit either;
    oneOf = alternatives: foldl' either (head alternatives) (builtins.tail alternatives);
    nullOr = type: mkType "null or ${type.name}" (value: value == null || type.check value) (at: defs: if all (def: def.value == null) defs then null else type.merge at defs);
    listOf =
      type:
      mkType "list of ${type.name}" isList (
        at: concatMap (def: genList (i: merged (at ++ [ "[definition ${toString (i + 1)}-entry]" ]) type [ (def // { value = elemAt def.value i; }) ]) (length def.value))
      );
    attrsOf =
      type:
      mkType "attribute set of ${type.name}" isAttrs (
        at: defs:
        let
          named = name: concatMap (def: optional (def.value ? ${name}) (def // { value = def.value.${name}; })) defs;
          # A name whose every definition is switched off does not exist.
          live = filter (name: concatMap discharged (named name) != [ ]) (unique (concatMap (def: attrNames def.value) defs));
        in
        lib.genAttrs live (name: merged (at ++ [ name ]) type (named name))
      );
    lazyAttrsOf = attrsOf;
    submodule =
      module:
      mkType "submodule" (value: isAttrs value || isFunction value) (
        at: defs:
        (evalModules {
          prefix = at;
          modules = lib.toList module ++ map (def: { _file = def.file; imports = [ (if isFunction def.value then def.value else { config = def.value; }) ]; }) defs ++ [ { _module.args.name = elemAt at (length at - 1); } ];
        }).config
      );
  };

  isAbsolute = value: (isPath value || isString value || isDerivation value) && hasPrefix "/" (toString value);

  # The definitions that count: conditions that hold, without those that a stronger one overrides.
  discharged =
    def:
    if isMarked "merge" def.value then
      concatMap (value: discharged (def // { inherit value; })) def.value.contents
    else if isMarked "if" def.value then
      optionals def.value.condition (discharged (def // { value = def.value.content; }))
    else
      [ def ];
  priority = def: if isMarked "override" def.value then def.value.priority else 100;
  strongest =
    defs:
    let
      best = foldl' (least: def: if priority def < least then priority def else least) 9999 defs;
    in
    map (def: if isMarked "override" def.value then def // { value = def.value.content; } else def) (filter (def: priority def == best) defs);

  merged =
    at: type: defs:
    let
      live = strongest (concatMap discharged defs);
      wrong = filter (def: !(type.check def.value)) live;
    in
    if live == [ ] then
      throw "The option `${show at}' was accessed but has no value defined. Try setting the option."
    else if wrong != [ ] then
      throw "A definition for option `${show at}' is not of type `${type.name}'. Definition values:\n- In `${(head wrong).file}': ${showValue (head wrong).value}"
    else
      type.merge at live;

  # Moves markers that stand around a set to each of its values.
  pushedDown =
    def:
    let
      each = f: map (inner: inner // { value = mapAttrs (_: f) inner.value; });
    in
    if isMarked "merge" def.value then
      concatMap (value: pushedDown (def // { inherit value; })) def.value.contents
    else if isMarked "if" def.value then
      each (mkIf def.value.condition) (pushedDown (def // { value = def.value.content; }))
    else if isMarked "override" def.value then
      each (mkOverride def.value.priority) (pushedDown (def // { value = def.value.content; }))
    else
      [ def ];

  evalModules =
    {
      modules,
      prefix ? [ ],
    }:
    let
      # Every module with its imports, as { file, options, config, freeformType }.
      collected =
        file: module:
        let
          origin = if isPath module then toString module else file;
          written = if isPath module then import module else module;
          given = { inherit lib config; };
          called = if isFunction written then written (given // mapAttrs (name: _: given.${name} or config._module.args.${name}) (functionArgs written)) else written;
          file' = called._file or origin;
          isLong = called ? config || called ? options || called ? freeformType;
          reserved = [
            "_file"
            "config"
            "freeformType"
            "imports"
            "options"
          ];
          own = {
            file = file';
            options = called.options or { };
            freeformType = called.freeformType or null;
            config = if isLong then called.config or { } else removeAttrs called reserved;
          };
        in
        concatMap (collected file') (called.imports or [ ]) ++ [ own ];
      all' = concatMap (collected "<unknown file>") modules;

      freeform = foldl' (found: module: if module.freeformType != null then module.freeformType else found) null all';
      declared = [ { _module.args = mkOption { type = types.lazyAttrsOf types.raw; }; } ] ++ map (module: module.options) all';
      defined = map (module: { inherit (module) file; value = module.config; }) all';

      # The values of the options below `at`, and the definitions that no option takes.
      walk =
        at: options: defs:
        let
          flat = concatMap pushedDown defs;
          names = unique (concatMap attrNames options);
          ours = name: concatMap (set: optional (set ? ${name}) set.${name}) options;
          theirs = name: concatMap (def: optional (def.value ? ${name}) (def // { value = def.value.${name}; })) flat;
          below =
            name:
            let
              found = ours name;
              option = head found;
              default = optional (option ? default) {
                file = "the option's default";
                value = mkOverride 1500 option.default;
              };
            in
            if isMarked "option" option then
              {
                value = (option.apply or (value: value)) (merged (prefix ++ at ++ [ name ]) option.type (theirs name ++ default));
                strays = [ ];
              }
            else
              walk (at ++ [ name ]) found (theirs name);
          subs = lib.genAttrs names below;
          stray = name: map (def: { inherit (def) file; path = at ++ [ name ]; value = def.value.${name}; }) (filter (def: def.value ? ${name}) flat);
          strays = concatMap stray (filter (name: !elem name names) (unique (concatMap (def: attrNames def.value) flat)));
        in
        {
          value = mapAttrs (_: sub: sub.value) subs;
          strays = strays ++ concatMap (sub: sub.strays) (attrValues subs);
        };

      root = walk [ ] declared defined;
      live = filter (stray: discharged stray != [ ]) root.strays;
      nested = stray: foldl' (value: name: { ${name} = value; }) stray.value (reversed stray.path);
      reversed = list: genList (i: elemAt list (length list - 1 - i)) (length list);
      unknown = head live;
      free = if freeform == null then { } else freeform.merge prefix (map (stray: { inherit (stray) file; value = nested stray; }) root.strays);
      # What modules read; strays are looked for only when somebody outside reads the result, since conditions may hang on it.
      config = if freeform == null then root.value else recursiveUpdate free root.value;
    in
    {
      config =
        if freeform == null && live != [ ] then
          throw "The option `${show (prefix ++ unknown.path)}' does not exist. Definition values:\n- In `${unknown.file}': ${showValue unknown.value}"
        else
          removeAttrs config [ "_module" ];
    };
in
{
  inherit
    types
    evalModules
    mkIf
    mkMerge
    mkOption
    mkOverride
    ;
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkEnableOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      description = "Whether to enable ${what}.";
    };
  mkPackageOption =
    pkgs: name:
    {
      extraDescription ? "",
    }:
    mkOption {
      type = types.package;
      default = pkgs.${name};
      description = "The ${name} package to use. ${extraDescription}";
    };
}
