# The functions of nixpkgs' `lib` that flake.nix, nix/ and hosts/ use, written anew; the module system is in ./modules.nix.
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    head
    isAttrs
    isList
    length
    listToAttrs
    match
    replaceStrings
    stringLength
    substring
    tail
    toString
    ;

  base = {
    inherit (builtins)
      all
      any
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      elemAt
      filter
      foldl'
      genList
      hasAttr
      head
      isAttrs
      isBool
      isFunction
      isInt
      isList
      isString
      length
      listToAttrs
      map
      mapAttrs
      match
      replaceStrings
      sort
      tail
      toJSON
      ;

    # attribute sets
    nameValuePair = name: value: { inherit name value; };
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    filterAttrs = keep: set: removeAttrs set (filter (name: !(keep name set.${name})) (attrNames set));
    genAttrs = names: f: listToAttrs (map (name: base.nameValuePair name (f name)) names);
    optionalAttrs = condition: set: if condition then set else { };
    recursiveUpdate =
      old: new:
      old // builtins.mapAttrs (name: value: if isAttrs value && isAttrs (old.${name} or null) then base.recursiveUpdate old.${name} value else value) new;
    isDerivation = value: isAttrs value && value.type or null == "derivation";

    # lists
    optional = condition: item: if condition then [ item ] else [ ];
    optionals = condition: items: if condition then items else [ ];
    toList = value: if isList value then value else [ value ];
    unique = foldl' (seen: item: if elem item seen then seen else seen ++ [ item ]) [ ];
    flatten = value: if isList value then concatMap base.flatten value else [ value ];

    # strings
    optionalString = condition: text: if condition then text else "";
    concatMapStrings = f: items: concatStringsSep "" (map f items);
    concatMapStringsSep = separator: f: items: concatStringsSep separator (map f items);
    splitString = separator: text: filter builtins.isString (builtins.split (base.escapeRegex separator) text);
    escapeRegex = replaceStrings [ "." "+" "*" "?" "(" ")" "[" "]" "|" "\\" "^" "$" ] [ "\\." "\\+" "\\*" "\\?" "\\(" "\\)" "\\[" "\\]" "\\|" "\\\\" "\\^" "\\$" ];
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        start = stringLength text - stringLength suffix;
      in
      start >= 0 && substring start (stringLength suffix) text == suffix;
    removePrefix = prefix: text: if base.hasPrefix prefix text then substring (stringLength prefix) (stringLength text) text else text;

    escapeShellArg = text: "'${replaceStrings [ "'" ] [ "'\\''" ] (toString text)}'";
    escapeShellArgs = base.concatMapStringsSep " " base.escapeShellArg;

    # packages
    getName = package: package.pname or (builtins.parseDrvName package.name).name;
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    getExe' = package: name: "${package}/bin/${name}";
    getLib = package: package;
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    licenses.gpl3Only = {
      shortName = "gpl3Only";
      free = true;
    };

    # Copies what is named, and nothing else, as the real one does.
    fileset = {
      unions = concatMap base.toList;
      toSource =
        { root, fileset }:
        let
          wanted = map toString (base.toList fileset);
          inside = path: any (set: path == set || base.hasPrefix "${set}/" path) wanted;
          leadsTo = path: any (base.hasPrefix "${path}/") wanted;
        in
        builtins.path {
          path = root;
          name = "source";
          filter = path: _: inside path || leadsTo path;
        };
    };
  };
  lib = base // import ./modules.nix { inherit lib; };
in
lib
