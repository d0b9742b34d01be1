-- What the store does in one step. Each function touches only the keys it is given, which lie in one slot. Each looks
-- at everything first and writes after that, or takes back what it wrote, so that a refusal, or a key of the wrong
-- type, leaves nothing half done.
-- An answer is a list whose first element says how it went.

-- Bytes of a history entry: `ENTRY` of featurestore/codecs.py.
local ENTRY = 21
-- Bytes of an entry of contexts behind its numbers, of 4 bytes each: featurestore/contexts/codec.py.
local FOOT = 16
-- What a leader is told that was replaced: an error, so that no caller has to look for it.
local LOST = { err = 'LOST another trainer leads' }

-- The `n` that a record has seen. Lua's numbers are doubles: exact up to 2^53 ratings of a user.
local function counter(record)
  return (struct.unpack('<I8', record))
end

-- A number as an id or a field has it: `tostring` writes those from 1e14 on with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- The entries of `blob` whose item and type are not in `history`.
local function of_new_items(history, blob)
  local seen, kept = {}, {}
  for at = 1, #history, ENTRY do
    seen[string.sub(history, at, at + 4)] = true
  end
  for at = 1, #blob, ENTRY do
    if not seen[string.sub(blob, at, at + 4)] then
      kept[#kept + 1] = string.sub(blob, at, at + ENTRY - 1)
    end
  end
  return table.concat(kept)
end

-- The entries of contexts whose item is rated in `history`. Each ends with how many numbers it begins with.
local function of_items(history, contexts)
  local seen, kept, stop = {}, {}, #contexts
  for at = 1, #history, ENTRY do
    seen[string.sub(history, at, at + 4)] = true
  end
  while stop >= FOOT do
    local foot = stop - FOOT + 1
    local first = math.max(1, foot - 4 * struct.unpack('<I4', contexts, stop - 3))
    if seen[string.sub(contexts, foot, foot + 3) .. '\0'] then
      kept[#kept + 1] = string.sub(contexts, first, stop)
    end
    stop = first - 1
  end
  for i = 1, math.floor(#kept / 2) do
    kept[i], kept[#kept + 1 - i] = kept[#kept + 1 - i], kept[i]
  end
  return table.concat(kept)
end

-- Whether `pcall` gave an error, such as WRONGTYPE or OOM, in place of a reply.
local function refused(reply)
  return type(reply) == 'table' and reply.err ~= nil
end

-- A store that has reached its `maxmemory` refuses functions and commands that may write, and this would refuse also
-- what makes room, or what the process that makes room needs to be heard. What has this flag writes a few bytes at
-- most beside what it frees; ratings, items, records and new generations go without.
local ALWAYS = { 'allow-oom' }

-- Keeps a function to the leader: the first key is the pointer, the first argument the fence.
local function led(callback)
  return function(keys, args)
    return redis.call('HGET', keys[1], 'fence') ~= args[1] and LOST or callback(keys, args)
  end
end

-- Keeps a function to callers who know the epochs: the first key has them, the first argument is what they must be.
local function expecting(callback)
  return function(keys, args)
    local stored = redis.call('GET', keys[1]) or ''
    if stored ~= args[1] then
      return { 'EPOCHS', stored }
    end
    return callback(keys, args)
  end
end

local function register(name, flags, callback, guard)
  callback = guard and guard(callback) or callback
  redis.register_function({ function_name = '@LIBRARY@_' .. name, callback = callback, flags = flags })
end

-- Of a stream's counts: events ever added, those that are done, the milliseconds that no entry which follows is before,
-- the identity of the store, where it was said, and whether any of its users has contexts.
local function progress(counts)
  local state = redis.call('HMGET', counts, 'last', 'done', 'identity', 'contexts', 'floor')
  local ms, added = string.match(state[1] or '0-0', '^(%d+)-(%d+)$')
  ms = math.max(tonumber(ms), tonumber(state[5] or '0') or 0)
  return tonumber(added), tonumber(state[2] or '0'), ms, state[3], state[4] == '1'
end

-- The store's time in milliseconds.
local function now_ms()
  local now = redis.call('TIME')
  return 1000 * tonumber(now[1]) + math.floor(tonumber(now[2]) / 1000)
end

-- Adds `count` events as one entry, with their contexts where these are not ''; returns the refusal, or nil. The entry's
-- id ends with the number of its last event, so that ids count events; its milliseconds are the store's time, or the
-- floor of its stream where that is later, and never fall.
local function add_entry(stream, counts, count, numbers, ids, entries, contexts)
  local added, _, least_ms = progress(counts)
  local ms = math.max(least_ms, now_ms())
  local id = string.format('%.0f-%.0f', ms, added + count)
  local fields = { 'n', numbers, 'u', ids, 'e', entries }
  if contexts ~= '' then
    fields = { 'n', numbers, 'u', ids, 'e', entries, 'x', contexts }
  end
  local reply = redis.pcall('XADD', stream, id, unpack(fields))
  if refused(reply) then
    return reply
  end
  redis.call('HSET', counts, 'last', id)
  return nil
end

-- Appends to a key as long as nothing was refused; returns the length, false where nothing is appended, and the refusal.
local function append(key, blob, refusal)
  if refusal or blob == '' then
    return false, refusal
  end
  local length = redis.pcall('APPEND', key, blob)
  if refused(length) then
    return false, length
  end
  return length, nil
end

-- Takes back what `append` did.
local function cut(key, length, blob)
  if length and length == #blob then
    redis.call('DEL', key)
  elseif length then
    redis.call('SET', key, redis.call('GETRANGE', key, 0, length - #blob - 1))
  end
end

-- Counts and appends the entries of all users in one epoch, and adds their events; returns the refusal, or nil.
-- `key` and `arg`: before the keys and before the entries of the first user; `ctx`: before the first one's contexts, nil
-- where these have no keys. Looking at each user before the first write would cost as much as the writes: what was
-- written before a refusal is taken back instead.
local function rate_epoch(keys, args, key, arg, count, ctx)
  local call, try, pack = redis.call, redis.pcall, struct.pack
  local users, any_forgotten, each = tonumber(args[6]), redis.call('HLEN', keys[key]) > 0, ctx and 3 or 2
  local numbers, fresh, lengths, widths, contexts, refusal = {}, {}, {}, {}, {}, nil
  for u = 1, users do
    local user, new = keys[key + each * (u - 1) + 1], #args[arg + u] / ENTRY
    -- Of none the key must not come into being.
    local n = new > 0 and try('HINCRBY', user, 'n', new) or tonumber(call('HGET', user, 'n') or '0')
    if refused(n) then
      refusal = n
      break
    end
    fresh[u] = new > 0 and n == new
    if any_forgotten and fresh[u] then
      local before = call('HGET', keys[key], string.sub(args[7], 16 * u - 15, 16 * u))
      if before then
        n = call('HINCRBY', user, 'n', before)
      end
    end
    numbers[u] = pack('<I8I4', n - new, new)
  end
  local given = false
  for u = 1, refusal and 0 or users do
    local at = key + each * (u - 1) + 2
    lengths[u], refusal = append(keys[at], args[arg + u], refusal)
    if ctx then
      -- One who never gave a context has none to be replaced by 'not given'.
      local gives = string.sub(args[9], u, u) == '1' and args[ctx + u] ~= ''
      contexts[u] = (gives or call('EXISTS', keys[at + 1]) == 1) and args[ctx + u] or ''
      widths[u], refusal = append(keys[at + 1], contexts[u], refusal)
      given = given or gives
    end
  end
  if not refusal then
    local entries, packed = table.concat(args, '', arg + 1, arg + users), table.concat(contexts)
    if packed ~= '' then
      local sizes = {}
      for u = 1, users do
        sizes[u] = pack('<I4', #contexts[u])
      end
      packed = table.concat(sizes) .. packed
    end
    refusal = add_entry(keys[key - 2], keys[key - 1], count, table.concat(numbers), args[8], entries, packed)
  end
  if refusal then
    for u = 1, #numbers do
      local at, blob = key + each * (u - 1) + 1, args[arg + u]
      if fresh[u] then
        call('HDEL', keys[at], 'n')
      elseif blob ~= '' then
        call('HINCRBY', keys[at], 'n', -#blob / ENTRY)
      end
      cut(keys[at + 1], lengths[u], blob)
      cut(keys[at + 2], widths[u], contexts[u])
    end
  elseif given then
    call('HSET', keys[key - 1], 'contexts', '1')
  end
  return refusal
end

-- Whether any item and type of `blob` may be among the last `since` events of a history; one that cannot be read may
-- have any.
local function may_have_since(history, since, blob)
  local length = redis.pcall('STRLEN', history)
  if refused(length) or length % ENTRY > 0 then
    return true
  end
  -- Each event has added an entry, and what is compacted keeps its order: the events since are in the end.
  local first = math.max(0, length - ENTRY * since)
  return since > 0 and #of_new_items(redis.call('GETRANGE', history, first, -1), blob) < #blob
end

-- The reply that names the users who were forgotten since a caller had read their `n`; of 'unchanged', also those of
-- whose new entries any may have come in since, or who cannot be read, and negative those of whom there is nothing. One
-- whose mark is as high may have been unknown when that was read: nothing of such a user is written either.
local function left_since(keys, args, each)
  local gone, exact = { 'LEFT' }, args[4] == 'unchanged'
  local look = exact and redis.pcall or redis.call
  for u = 1, tonumber(args[6]) do
    local at = 5 + each * (u - 1)
    local found = look('HGET', keys[at], 'n')
    local n, read = tonumber(found or '0'), struct.unpack('<I8', args[#args], 8 * u - 7)
    local mark = args[7] ~= '' and redis.call('HGET', keys[4], string.sub(args[7], 16 * u - 15, 16 * u))
    if exact and not found and redis.call('EXISTS', keys[at + 1]) == 0 then
      gone[#gone + 1] = -u
    elseif exact and (not n or may_have_since(keys[at + 1], n - read, args[9 + u])) then
      gone[#gone + 1] = u
    elseif exact and each == 3 and refused(redis.pcall('STRLEN', keys[at + 2])) then
      gone[#gone + 1] = u
    elseif n < read or (mark and tonumber(mark) >= read) then
      gone[#gone + 1] = u
    end
  end
  return gone
end

-- keys: epochs, then for each epoch: ratings, counts, forgotten, and (user, history[, contexts]) for each user.
-- args: expected epochs, stream limit, most bytes of a history ('0': any), 'bootstrap', 'live', 'shown' or 'unchanged',
-- identity of the store that the caller knows, number of users, their digests joined or '', their ids as the stream has them, what
-- there is of contexts, then for each epoch the new entries of each user. Of contexts there may be '' (none was given;
-- but where any user of the partition has some, their keys are wanted: CONTEXTS), '-' (there are no ratings among the
-- entries), or for each user '1' where any was given, else '0': then each user has a third key, and behind all entries
-- there are for each epoch the contexts of each user, one for each rating, also of those without any, so that a rating
-- that replaces another does not get its context. Last, of 'shown', which writes nothing where a user was forgotten
-- since, and of 'unchanged', which writes nothing either where a user has made an event of the same item since, the `n`
-- of each user in the first epoch as the caller had read it, joined.
register('rate', {}, function(keys, args)
  local limit, most, bootstrap, users = tonumber(args[2]), tonumber(args[3]), args[4] == 'bootstrap', tonumber(args[6])
  local each = (args[9] == '' or args[9] == '-') and 2 or 3
  local stride = 3 + each * users
  local sets, counts = (#keys - 1) / stride, {}
  for e = 0, sets - 1 do
    local key, arg, bytes = 4 + e * stride, 9 + e * users, 0
    local ctx = each == 3 and arg + sets * users
    if redis.call('HLEN', keys[key]) > 0 and args[7] == '' then
      return { 'DIGESTS' }
    end
    local dated = e == 0 and (args[4] == 'shown' or args[4] == 'unchanged')
    local gone = dated and left_since(keys, args, each) or {}
    if #gone > 1 then
      return gone
    end
    for u = 1, users do
      local at = key + each * (u - 1) + 2
      local history, given = bootstrap and redis.call('GET', keys[at]), #args[arg + u]
      if bootstrap and args[7] ~= '' and redis.call('HEXISTS', keys[key], string.sub(args[7], 16 * u - 15, 16 * u)) == 1 then
        -- Forgotten since this history began.
        args[arg + u] = ''
      elseif history then
        args[arg + u] = of_new_items(history, args[arg + u])
      end
      if ctx and #args[arg + u] < given then
        args[ctx + u] = of_items(args[arg + u], args[ctx + u])
      end
      bytes = bytes + #args[arg + u]
      if most > 0 and redis.call('STRLEN', keys[at]) + #args[arg + u] > most then
        return { 'LONG', u }
      end
    end
    counts[e] = bytes / ENTRY
    -- Raises now, before any write, where the key is no stream.
    redis.call('XLEN', keys[key - 2])
    local added, done, _, identity, any_contexts = progress(keys[key - 1])
    if identity and identity ~= args[5] then
      -- Decided on another store: rows of items there may be those of others here.
      return { 'CHANGED' }
    end
    if any_contexts and args[9] == '' then
      return { 'CONTEXTS' }
    end
    if added - done + counts[e] > limit then
      return { 'FULL' }
    end
  end
  for e = 0, sets - 1 do
    local key, arg = 4 + e * stride, 9 + e * users
    local ctx = each == 3 and arg + sets * users
    local refusal = counts[e] > 0 and rate_epoch(keys, args, key, arg, counts[e], ctx)
    if refusal then
      return refusal
    end
    if counts[e] > 0 and not bootstrap then
      -- Live ratings; stored data has them under this name.
      redis.call('HINCRBY', keys[key - 1], 'loose', counts[e])
    end
  end
  return { 'OK' }
end, expecting)

-- Whether a list of users with attributes can be changed. One of another type is dropped: without the mark that it has all,
-- which went with it, the next reader makes it anew.
local function list_users(list)
  local kind = redis.call('TYPE', list).ok
  if kind ~= 'zset' and kind ~= 'none' then
    redis.call('UNLINK', list)
  end
end

-- keys: epochs, attributes of the user, list of users with attributes, then for each epoch: ratings, counts, forgotten,
-- user, history, contexts.
-- args: expected epochs, the id as the stream has it, digest, the entry that says so, the n that the user still has in the
-- first epoch ('': any), then what the user has again at once, in pieces, each an entry of the stream: whether a piece has
-- any context, '1' or '0', for each piece; and for each epoch the entries of all pieces, then the contexts of all. Answers
-- n and history of the first epoch, and the time of it: later than every event before it, no later than any that follows.
register('forget', ALWAYS, function(keys, args)
  local found, time = {}, now_ms()
  for at = 4, #keys, 6 do
    -- These two raise before any write where a key has the wrong type.
    redis.call('XLEN', keys[at])
    local _, _, last_ms = progress(keys[at + 1])
    time = math.max(time, last_ms + 1)
    found[#found + 1] = {
      n = redis.call('HGET', keys[at + 3], 'n'),
      before = redis.call('HGET', keys[at + 2], args[3]),
      history = redis.call('GET', keys[at + 4]) or '',
    }
  end
  if args[5] ~= '' and found[1].n ~= args[5] then
    return { 'CHANGED' }
  end
  for i, state in ipairs(found) do
    local at = 6 * i - 2
    if state.n == '0' then
      -- Known by attributes alone: no event names this user.
      redis.call('UNLINK', keys[at + 3])
      state.n = nil
    end
    -- Where no mark is written, too: by a clock that was ahead for a while, other streams may be far before this one.
    redis.call('HSET', keys[at + 1], 'floor', whole(time))
    if state.n then
      local number = struct.pack('<I8I4', tonumber(state.n) - 1, 1)
      local refusal = add_entry(keys[at], keys[at + 1], 1, number, args[2], args[4], '')
      if refusal then
        return refusal
      end
      redis.call('HSET', keys[at + 2], args[3], state.n)
      redis.call('UNLINK', keys[at + 3], keys[at + 4], keys[at + 5])
    elseif not state.before then
      -- What is still to be written of this user, in an epoch that is being prepared or as shown, is from before, and
      -- is left out.
      redis.call('HSET', keys[at + 2], args[3], '0')
    end
  end
  redis.call('UNLINK', keys[2])
  list_users(keys[3])
  redis.call('ZREM', keys[3], string.sub(args[2], 3))
  local pieces = #args[6]
  for i = 1, pieces > 0 and #found or 0 do
    local first = 6 + 2 * pieces * (i - 1)
    for j = 1, pieces do
      local kept, contexts, gives = args[first + j], args[first + pieces + j], string.sub(args[6], j, j)
      local one = { [6] = '1', [7] = args[3], [8] = args[2], [9] = gives, [10] = kept, [11] = contexts }
      local refusal = rate_epoch(keys, one, 6 * i, 9, #kept / ENTRY, 10)
      if refusal then
        return refusal
      end
    end
  end
  return { 'OK', found[1].n or found[1].before or '0', found[1].history, whole(time) }
end, expecting)

-- keys: forgotten. args: (digest, n) of users that no kept generation has seen. An entry that has moved on stays.
register('release_forgotten', ALWAYS, function(keys, args)
  local released = 0
  for at = 1, #args, 2 do
    if redis.call('HGET', keys[1], args[at]) == args[at + 1] then
      released = released + redis.call('HDEL', keys[1], args[at])
    end
  end
  return { 'OK', released }
end)

-- The names in a list, and how many there are.
local function names(list)
  local found, count = {}, 0
  for field in string.gmatch(list, '[^,]+') do
    found[field] = true
    count = count + 1
  end
  return found, count
end

-- Takes the record if its user is known, has come as far, and no newer record is there (`anew`: nor one that has seen
-- more). Answers whether it is there now, and whether it was written just now.
local function put(user, field, record, floor, anew)
  local call = redis.call
  local n = tonumber(call('HGET', user, 'n') or '')
  local seen = counter(record)
  if not n or seen > n or seen <= floor then
    return false, false
  end
  if call('HSETNX', user, field, record) == 0 then
    local old = call('HGET', user, field)
    local before = #old == #record and counter(old) or 0
    if before >= seen and before <= n and not (anew and before == seen) then
      return before == seen, false
    end
    call('HSET', user, field, record)
  end
  return true, true
end

-- Drops the fields of generations up to number `upto` that are not kept; later ones are not known to the caller.
local function drop_fields(user, upto, kept)
  local gone = {}
  for _, field in ipairs(redis.call('HKEYS', user)) do
    local number = not kept[field] and tonumber(string.match(field, '^g(%d+)$') or '')
    if number and number <= upto then
      gone[#gone + 1] = field
    end
  end
  if #gone > 0 then
    redis.call('HDEL', user, unpack(gone))
  end
end

-- keys: user, history, forgotten, contexts. args: field, record, digest, upto, kept fields, since when the attributes are
-- those that it rests on ('': it rests on none), '1' where the one that is there was found damaged[, n, compacted history
-- or '', sample or '', contexts of the compacted history or '']. The compacted history is taken only while nothing was
-- added since it was read, its contexts with it: so there are never more of these than entries.
register('put_record', {}, function(keys, args)
  -- Of a user of whom attributes alone are known `n` is 0.
  local floor = tonumber(redis.call('HGET', keys[3], args[3]) or '-1')
  local n = args[8] and redis.call('HGET', keys[1], 'n')
  local sample = args[10] or ''
  if n and n == args[8] and args[9] ~= '' and redis.call('EXISTS', keys[2]) == 1 then
    redis.call('SET', keys[2], args[9])
    if args[11] ~= '' then
      redis.call('SET', keys[4], args[11])
    else
      redis.call('UNLINK', keys[4])
    end
  end
  if n and sample ~= '' and counter(sample) > floor and counter(sample) <= tonumber(n) then
    redis.call('HSET', keys[1], 'sample', sample)
  end
  if args[6] ~= '' and (redis.call('HGET', keys[1], 'described') or '0') ~= args[6] then
    return { 'OK', 0 }
  end
  local taken, written = put(keys[1], args[1], args[2], floor, args[7] == '1')
  if written then
    local kept = names(args[5])
    kept[args[1]] = true
    drop_fields(keys[1], tonumber(args[4]), kept)
  end
  return { 'OK', taken and 1 or 0 }
end)

-- keys: forgotten, users. args: field, upto, kept fields (with this one), fields that are not kept and likely to be
-- there, when the attributes that the records rest on were read ('': they rest on none), the users' digests joined or '',
-- a record for each user. One whose attributes were changed since is left to its first reader.
-- Likely fields go unseen, and the names are looked at only where more are left than are kept: with the names of each
-- user a record takes half as long again.
register('put_records', {}, function(keys, args)
  local call = redis.call
  local field, upto, read_ms, digests = args[1], tonumber(args[2]), tonumber(args[5]), args[6]
  if digests == '' and call('HLEN', keys[1]) > 0 then
    return { 'DIGESTS' }
  end
  local kept, most = names(args[3])
  local likely, taken = {}, 0
  for each in string.gmatch(args[4], '[^,]+') do
    likely[#likely + 1] = each
  end
  for u = 2, #keys do
    local user, floor = keys[u], 0
    if digests ~= '' then
      floor = tonumber(call('HGET', keys[1], string.sub(digests, 16 * u - 31, 16 * u - 16)) or '0')
    end
    local is_there, written = false, false
    if not read_ms or tonumber(call('HGET', user, 'described') or '0') < read_ms then
      is_there, written = put(user, field, args[u + 5], floor)
    end
    if is_there then
      taken = taken + 1
    end
    if written then
      if likely[1] then
        call('HDEL', user, unpack(likely))
      end
      if call('HLEN', user) > most + 1 then
        drop_fields(user, upto, kept)
      end
    end
  end
  return { 'OK', taken }
end)

-- keys: active users, users. args: their ids. Those who are known are among the active ones from here on: one who was
-- forgotten since the caller had read of that user stays so.
register('add_active', {}, function(keys, args)
  local added = 0
  for u = 2, #keys do
    if redis.call('HEXISTS', keys[u], 'n') == 1 then
      added = added + redis.call('SADD', keys[1], args[u - 1])
    end
  end
  return { 'OK', added }
end)

-- What a reader needs of one user but the attributes.
local function look_at_ratings(keys, args)
  local state = redis.call('HMGET', keys[1], 'n', args[1], 'sample')
  local size, most = redis.call('STRLEN', keys[2]), tonumber(args[2])
  local entries, sample = math.floor(size / ENTRY), state[3] or ''
  local contexts = redis.call('GETRANGE', keys[3], '-' .. args[4], -1)
  local width = contexts ~= '' and redis.call('STRLEN', keys[3]) or 0
  if entries <= most then
    return { state[1], state[2], redis.call('GET', keys[2]), size, false, contexts, width }
  end
  local since = #sample >= 8 and (tonumber(state[1] or '') or 0) - counter(sample) or most
  if since >= 0 and since < most then
    most = math.max(since, tonumber(args[3]))
  end
  local tail = redis.call('GETRANGE', keys[2], (entries - most) * ENTRY, -1)
  return { state[1], state[2], tail, size, sample, contexts, width }
end

-- keys: user, history, contexts[, attributes of the user]. args: field, most entries, entries that count in any case, most
-- bytes of contexts. What a reader needs of one user, as of one moment: of a longer history its end, as far back as the
-- sample that stands beside it, and the end of the contexts.
register('look', { 'no-writes' }, function(keys, args)
  local found = look_at_ratings(keys, args)
  if keys[4] then
    -- Attributes that cannot be read keep no user from an answer.
    local value = redis.pcall('HGET', keys[4], 'value')
    found[8] = redis.call('HGET', keys[1], 'described') or '0'
    found[9] = not refused(value) and value or ''
  end
  return found
end)

-- keys: user, history, history or contexts. args: first byte, last byte, of the third.
register('look_at', { 'no-writes' }, function(keys, args)
  local n = redis.call('HGET', keys[1], 'n')
  return { n, redis.call('STRLEN', keys[2]), redis.call('GETRANGE', keys[3], args[1], args[2]) }
end)

-- keys: items, order. args: most rows, most new ids that the same caller brings in further calls, ids. Answers the rows.
register('register_items', {}, function(keys, args)
  if redis.call('HEXISTS', keys[1], '') == 0 then
    return { 'GONE' }
  end
  local rows, new, fresh = {}, {}, {}
  local next_row = redis.call('LLEN', keys[2])
  -- `unpack` puts its list on Lua's stack, which takes 8,000 values.
  for start = 3, #args, 1000 do
    local stop = math.min(start + 999, #args)
    local found = redis.call('HMGET', keys[1], unpack(args, start, stop))
    for at = start, stop do
      local row = found[at - start + 1] or fresh[args[at]]
      if not row then
        row = whole(next_row)
        fresh[args[at]] = row
        new[#new + 1] = args[at]
        next_row = next_row + 1
      end
      rows[at - 2] = row
    end
  end
  if #new > 0 and next_row + tonumber(args[2]) > tonumber(args[1]) then
    return { 'FULL' }
  end
  for _, id in ipairs(new) do
    redis.call('HSET', keys[1], id, fresh[id])
    redis.call('RPUSH', keys[2], id)
  end
  return { 'OK', rows }
end)

-- keys: config. args: identity, then field, value, ... The first caller fixes them; answers what holds. A namespace
-- without an identity gets one.
register('create_namespace', ALWAYS, function(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    redis.call('HSET', keys[1], unpack(args, 2))
  end
  redis.call('HSETNX', keys[1], 'identity', args[1])
  return { 'OK', redis.call('HGETALL', keys[1]) }
end)

-- keys: config. args: scale. The first caller decides; answers what holds. One that is not decided has a mark.
register('decide_scale', ALWAYS, function(keys, args)
  if redis.call('HDEL', keys[1], 'scale_open') == 1 then
    redis.call('HSET', keys[1], 'scale', args[1])
  end
  return { 'OK', redis.call('HGET', keys[1], 'scale') }
end)

-- keys: lease, live. args: token, ttl in ms. The same token again is the same lease.
register('acquire_lease', ALWAYS, function(keys, args)
  local holder = redis.call('GET', keys[1])
  if holder and holder ~= args[1] then
    return { 'TAKEN' }
  end
  local fence = redis.call('HGET', keys[2], 'fence')
  if not holder or not fence then
    fence = whole(redis.call('HINCRBY', keys[2], 'fence', 1))
  end
  redis.call('SET', keys[1], args[1], 'PX', args[2])
  return { 'OK', fence }
end)

-- keys: lease, live. args: token, ttl in ms, fence. An expired lease that no other trainer took goes on.
register('renew_lease', ALWAYS, function(keys, args)
  local holder = redis.call('GET', keys[1])
  if (holder and holder ~= args[1]) or redis.call('HGET', keys[2], 'fence') ~= args[3] then
    return LOST
  end
  redis.call('SET', keys[1], args[1], 'PX', args[2])
  return { 'OK' }
end)

-- keys: lease. args: token.
register('release_lease', ALWAYS, function(keys, args)
  if redis.call('GET', keys[1]) == args[1] then
    redis.call('DEL', keys[1])
  end
  return { 'OK' }
end)

-- keys: live. args: fence. Answers the number of a new generation; a number is given once.
register('allot_generation', {}, function(keys, args)
  return { 'OK', redis.call('HINCRBY', keys[1], 'next', 1) }
end, led)

-- keys: live, generations. args: fence, number, summary.
register('put_generation', {}, function(keys, args)
  redis.call('HSET', keys[2], args[2], args[3])
  return { 'OK' }
end, led)

-- Whether a later leader has come than that with this fence; '' is said by callers that lead nothing.
local function replaced(live, fence)
  return fence ~= '' and redis.call('HGET', live, 'fence') ~= fence
end

-- keys: live, generations. args: number, fence or ''. From here on it cannot go live.
register('retire_generation', ALWAYS, function(keys, args)
  if replaced(keys[1], args[2]) then
    return LOST
  end
  local summary = redis.call('HGET', keys[2], args[1])
  if not summary then
    return { 'GONE' }
  end
  if redis.call('HGET', keys[1], 'generation') == args[1] then
    return { 'LIVE' }
  end
  -- As text: cjson would write an empty list as an object, and times with 14 digits.
  summary = string.gsub(summary, '"state":"%a+"', '"state":"removing"', 1)
  redis.call('HSET', keys[2], args[1], summary)
  if redis.call('HGET', keys[1], 'previous') == args[1] then
    redis.call('HSET', keys[1], 'previous', '0')
  end
  return { 'OK', summary }
end)

-- keys: live, generations. args: number, fence ('' when a person asks), automatic '1' or '0', hold '1' or '0'.
register('flip', ALWAYS, function(keys, args)
  local live = redis.call('HMGET', keys[1], 'epoch', 'generation', 'held', 'pending', 'abandoned')
  if replaced(keys[1], args[2]) then
    return LOST
  end
  local text = redis.call('HGET', keys[2], args[1])
  if not text then
    return { 'UNKNOWN', 'does not exist' }
  end
  local summary = cjson.decode(text)
  if summary.state ~= 'ready' then
    return { 'UNKNOWN', 'is not whole' }
  end
  local epoch, new_epoch = tonumber(live[1]), summary.epoch
  if new_epoch < epoch or (new_epoch > epoch and args[2] == '') then
    return { 'UNKNOWN', 'belongs to another history' }
  end
  if new_epoch > epoch and (live[4] ~= whole(new_epoch) or live[5] == live[4]) then
    return { 'UNKNOWN', 'belongs to an abandoned history' }
  end
  if new_epoch == epoch and args[3] == '1' and live[3] == '1' then
    return { 'HELD' }
  end
  if new_epoch ~= epoch then
    redis.call('HSET', keys[1], 'previous', '0')
  elseif live[2] ~= args[1] then
    redis.call('HSET', keys[1], 'previous', live[2] or '0')
  end
  redis.call('HSET', keys[1], 'epoch', whole(new_epoch), 'generation', args[1], 'held', args[4])
  return { 'OK' }
end)

-- keys: experiments. args: name, definition, most experiments. One experiment is about each scenario that calls ask for.
-- Answers what stands there under this name.
register('begin_experiment', {}, function(keys, args)
  local stands = redis.call('HGET', keys[1], args[1])
  if stands then
    return { 'EXISTS', stands }
  end
  local fields, count, new = redis.call('HGETALL', keys[1]), 0, cjson.decode(args[2])
  for at = 1, #fields, 2 do
    if fields[at] ~= '' then
      local is_json, other = pcall(cjson.decode, fields[at + 1])
      if is_json and type(other) == 'table' and other.scenario == new.scenario then
        return { 'BUSY', fields[at] }
      end
      count = count + 1
    end
  end
  if count >= tonumber(args[3]) then
    return { 'FULL' }
  end
  redis.call('HSET', keys[1], args[1], args[2])
  return { 'OK', args[2] }
end)

-- keys: experiments, then what came of it. args: name, the scenario of calls that ask for none or ''.
register('end_experiment', ALWAYS, function(keys, args)
  if redis.call('HEXISTS', keys[1], args[1]) == 0 then
    return { 'GONE' }
  end
  if args[2] ~= '' then
    redis.call('HSET', keys[1], '', args[2])
  end
  redis.call('HDEL', keys[1], args[1])
  redis.call('UNLINK', unpack(keys, 2))
  return { 'OK' }
end)

-- Adds doubles to those of a field, one by one; those of another number take the place of what was there.
local function add_doubles(key, field, doubles)
  local stored = redis.call('HGET', key, field)
  if stored and #stored == #doubles then
    local sums = {}
    for at = 1, #doubles, 8 do
      sums[#sums + 1] = struct.pack('<d', struct.unpack('<d', stored, at) + struct.unpack('<d', doubles, at))
    end
    doubles = table.concat(sums)
  end
  redis.call('HSET', key, field, doubles)
end

-- Counts those of `packed`, `width` bytes each, that were not counted before.
local function count_distinct(key, packed, width)
  local members = {}
  for at = 1, #packed, width do
    members[#members + 1] = string.sub(packed, at, at + width - 1)
  end
  if #members > 0 then
    redis.call('PFADD', key, unpack(members))
  end
end

-- keys: showings, items shown by the generation. args: generation, doubles or '', item rows joined. Answers of how many
-- generations there are any.
register('add_showings', {}, function(keys, args)
  count_distinct(keys[2], args[3], 4)
  if args[2] ~= '' then
    add_doubles(keys[1], args[1], args[2])
  end
  return { 'OK', redis.call('HLEN', keys[1]) }
end)

-- keys: experiments, sums, users of the arm. args: name, arm, doubles or '', marks of users joined, when the experiment
-- began: another one may have the name of one that has ended.
register('add_tally', {}, function(keys, args)
  local is_json, stands = pcall(cjson.decode, redis.call('HGET', keys[1], args[1]) or '')
  if not is_json or type(stands) ~= 'table' or stands.began ~= tonumber(args[5]) then
    return { 'GONE' }
  end
  count_distinct(keys[3], args[4], 8)
  if args[3] ~= '' then
    add_doubles(keys[2], args[2], args[3])
  end
  return { 'OK' }
end)

-- keys: live, stored. args: what prepares it, '' for a call that is over when its process is. Answers the number of a new
-- epoch; one at a time is prepared.
register('begin_epoch', {}, function(keys, args)
  if redis.call('HEXISTS', keys[1], 'pending') == 1 then
    return { 'BUSY' }
  end
  local epoch = redis.call('HINCRBY', keys[1], 'last_epoch', 1)
  redis.call('SADD', keys[2], whole(epoch))
  redis.call('HSET', keys[1], 'pending', whole(epoch), 'pending_since', redis.call('TIME')[1], 'pending_by', args[1] or '')
  return { 'OK', epoch }
end)

-- keys: live. args: epoch, what prepares it. It is still being prepared, and not yet to be given up.
register('hold_epoch', ALWAYS, function(keys, args)
  local live = redis.call('HMGET', keys[1], 'pending', 'abandoned')
  if live[1] ~= args[1] or live[2] == args[1] then
    return { 'GONE' }
  end
  redis.call('HSET', keys[1], 'pending_since', redis.call('TIME')[1], 'pending_by', args[2])
  return { 'OK' }
end)

-- keys: live. args: epoch, fence or ''. From here on it cannot go live.
register('abandon_epoch', ALWAYS, function(keys, args)
  if replaced(keys[1], args[2]) then
    return LOST
  end
  if redis.call('HGET', keys[1], 'epoch') == args[1] then
    return { 'LIVE' }
  end
  if redis.call('HGET', keys[1], 'pending') == args[1] then
    redis.call('HSET', keys[1], 'abandoned', args[1])
  end
  return { 'OK' }
end)

-- keys: live. args: epoch. It is live, and a worker that still serves the one before is to stop: ratings go to both for a
-- little longer.
register('take_over_epoch', ALWAYS, function(keys, args)
  local live = redis.call('HMGET', keys[1], 'epoch', 'pending')
  if live[1] == args[1] and live[2] == args[1] then
    redis.call('HSET', keys[1], 'taking_over', args[1])
  end
  return { 'OK' }
end)

-- keys: live. args: epoch. It is no longer being prepared: it is live, or there is nothing left of it.
register('end_epoch', ALWAYS, function(keys, args)
  if redis.call('HGET', keys[1], 'pending') == args[1] then
    redis.call('HDEL', keys[1], 'pending', 'pending_since', 'pending_by', 'abandoned', 'taking_over')
  end
  return { 'OK' }
end)

-- keys: epochs, counts of the live epoch, of the other one. args: what it must be, what it becomes. Done already is done.
-- Answers how many ratings had come in live: after this step each goes to the new epoch, too. No event that follows in
-- either is from before those that either has: of events of a user times tell which came before an erasure.
register('switch_epochs', ALWAYS, function(keys, args)
  local epochs, live = redis.call('GET', keys[1]) or '', redis.call('HGET', keys[2], 'loose') or '0'
  if epochs == args[2] then
    return { 'OK', live }
  end
  if epochs ~= args[1] then
    return { 'EPOCHS', epochs }
  end
  local floor = 0
  for at = 2, #keys do
    local _, _, last_ms = progress(keys[at])
    floor = math.max(floor, last_ms)
  end
  for at = 2, #keys do
    redis.call('HSET', keys[at], 'floor', whole(floor))
  end
  redis.call('SET', keys[1], args[2])
  return { 'OK', live }
end)

-- The fences of the groups on a stream, by name.
local function fences(stream)
  local found = {}
  if redis.call('EXISTS', stream) == 1 then
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      found[group[2]] = tonumber(string.match(group[2], '^trainer%-(%d+)$') or '-1')
    end
  end
  return found
end

-- Leaves one group on a stream, that of this fence, at this position; returns the refusal, or nil.
local function take_group(stream, fence, position)
  local name, groups = 'trainer-' .. fence, fences(stream)
  for _, other in pairs(groups) do
    if other > tonumber(fence) then
      return LOST
    end
  end
  for other, _ in pairs(groups) do
    if other ~= name then
      redis.call('XGROUP', 'DESTROY', stream, other)
    end
  end
  if groups[name] then
    redis.call('XGROUP', 'SETID', stream, name, position)
  else
    redis.call('XGROUP', 'CREATE', stream, name, position, 'MKSTREAM')
  end
  return nil
end

-- keys: ratings, epochs. args: epoch, fence, position. From here on only this leader reads, from that position on.
register('attach', ALWAYS, function(keys, args)
  local epochs = string.match(redis.call('GET', keys[2]) or '', '^%S*')
  if not string.find(',' .. epochs .. ',', ',' .. args[1] .. ',', 1, true) then
    return { 'GONE' }
  end
  return take_group(keys[1], args[2], args[3]) or { 'OK' }
end)

-- keys: ratings, counts. args: fence, first stream id that stays, number of the last event that is done. A number that was
-- never given was read before the store lost its end.
register('trim', ALWAYS, function(keys, args)
  if not fences(keys[1])['trainer-' .. args[1]] then
    return LOST
  end
  local added, done = progress(keys[2])
  if tonumber(args[3]) > added then
    return { 'AHEAD' }
  end
  redis.call('XTRIM', keys[1], 'MINID', '=', args[2])
  if tonumber(args[3]) > done then
    redis.call('HSET', keys[2], 'done', args[3])
  end
  return { 'OK' }
end)

-- keys: deltas. args: fence. From here on only this leader adds to them. The group is a mark in the slot of the deltas,
-- which may not be that of the pointer: nothing is read with it.
register('claim_deltas', ALWAYS, function(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    return { 'GONE' }
  end
  return take_group(keys[1], args[1], '$') or { 'OK' }
end)

-- keys: deltas. args: fence, rows, vectors, their checksum, levels, theirs[, factors of the ranking head, theirs[,
-- positive events, theirs]]. Answers its stream id and how many entries there are.
register('push_delta', {}, function(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    return { 'GONE' }
  end
  if not fences(keys[1])['trainer-' .. args[1]] then
    return LOST
  end
  local fields, names = {}, { 'r', 'v', 'c', 'a', 'b', 'h', 'k', 'p', 'q' }
  for at = 2, #args do
    fields[#fields + 1] = names[at - 1]
    fields[#fields + 1] = args[at]
  end
  local id = redis.call('XADD', keys[1], '*', unpack(fields))
  return { 'OK', id, redis.call('XLEN', keys[1]) }
end)

-- keys: workers. args: worker id, beat.
register('beat', ALWAYS, function(keys, args)
  redis.call('HSET', keys[1], args[1], args[2])
  return { 'OK' }
end)

-- keys: commands[, erasing[, live, which counts erasures[, command]]]. args: most that wait, what `erasing` says of it,
-- 'id', the id, then the other fields. With the key of its outcome a command that was asked for, or has ended, is not
-- asked for again.
register('ask', ALWAYS, function(keys, args)
  if keys[4] and (redis.call('HEXISTS', keys[2], args[4]) == 1 or redis.call('EXISTS', keys[4]) == 1) then
    return { 'OK' }
  end
  redis.call('XADD', keys[1], 'MAXLEN', '~', args[1], '*', unpack(args, 3))
  if keys[2] then
    redis.call('HSET', keys[2], args[4], args[2])
  end
  if keys[3] then
    redis.call('HINCRBY', keys[3], 'erasures', 1)
  end
  return { 'OK' }
end)

-- keys: live, command, erasing. args: fence, outcome, seconds that it stays[, the id, of one that has ended].
register('report', ALWAYS, function(keys, args)
  redis.call('SET', keys[2], args[2], 'EX', args[3])
  if args[4] then
    redis.call('HDEL', keys[3], args[4])
  end
  return { 'OK' }
end, led)

-- keys: live, commands, erasing. args: fence, stream id and id of a command to erase, which leaves: it names the user.
register('drop_erasure', ALWAYS, function(keys, args)
  redis.call('HSET', keys[3], args[3], 'files')
  redis.call('XDEL', keys[2], args[2])
  return { 'OK' }
end, led)

-- The value of a name in what XINFO answers.
local function named(answer, name)
  for at = 1, #answer, 2 do
    if answer[at] == name then
      return answer[at + 1]
    end
  end
end

-- keys: a stream. args: most entries that are copied. An entry that is removed stays in its node until all of that is, and
-- so in the files that the store writes: those that are left are added anew, under their ids, with their groups.
register('renew_stream', ALWAYS, function(keys, args)
  local call, stream = redis.call, keys[1]
  local length = call('EXISTS', stream) == 1 and call('XLEN', stream) or 0
  if length == 0 then
    return { 'OK' }
  end
  if length > tonumber(args[1]) then
    return { 'LATER' }
  end
  local entries, groups = call('XRANGE', stream, '-', '+'), call('XINFO', 'GROUPS', stream)
  local last = named(call('XINFO', 'STREAM', stream), 'last-generated-id')
  call('DEL', stream)
  for _, entry in ipairs(entries) do
    call('XADD', stream, entry[1], unpack(entry[2]))
  end
  call('XSETID', stream, last)
  for _, group in ipairs(groups) do
    call('XGROUP', 'CREATE', stream, named(group, 'name'), named(group, 'last-delivered-id'))
  end
  return { 'OK' }
end)

-- keys: any. args: value, seconds that it stays.
register('keep_for', ALWAYS, function(keys, args)
  redis.call('SET', keys[1], args[1], 'EX', args[2])
  return { 'OK' }
end)

-- keys: schema. args: most attributes of a kind, then name and type of each; a name begins with its kind and a colon. The
-- first use of a name fixes its type. All are held, or none.
register('hold_types', {}, function(keys, args)
  local function kind_of(name)
    return string.match(name, '^[^:]*')
  end
  local names, new = {}, {}
  for _, name in ipairs(redis.call('HKEYS', keys[1])) do
    names[kind_of(name)] = (names[kind_of(name)] or 0) + 1
  end
  for at = 2, #args, 2 do
    local held, kind = redis.call('HGET', keys[1], args[at]), kind_of(args[at])
    if held and held ~= args[at + 1] then
      return { 'TYPE', args[at], held }
    end
    if not held then
      new[kind] = (new[kind] or 0) + 1
    end
  end
  for kind, count in pairs(new) do
    if (names[kind] or 0) + count > tonumber(args[1]) then
      return { 'FULL', kind }
    end
  end
  for at = 2, #args, 2 do
    redis.call('HSET', keys[1], args[at], args[at + 1])
  end
  return { 'OK' }
end)

-- Whether a value is still the one with this SHA-1, '' for none: what replaces it was made from that.
local function is_still(value, digest)
  return (value and redis.sha1hex(value) or '') == digest
end

-- keys: catalogue, items, ids, titles, deleted, changes, schema. args: most items, most changes that are kept, a random
-- number, the ids as the change says them, fields of the schema as they must be, fields as they become ('': they go), then of each item: id, SHA-1 of what it was ('': it was not there; 'deleted'), what it
-- becomes ('': it is deleted), its entry among the titles before, and its entry after ('': none). The version is the number of the change, a dash, and the random number: so a store that lost its last
-- changes, and took others since, has other versions.
register('change_catalogue', {}, function(keys, args)
  local call, new = redis.call, 0
  for field, text in pairs(cjson.decode(args[5])) do
    if call('HGET', keys[7], field) ~= text then
      return { 'TYPES', field }
    end
  end
  for at = 7, #args, 5 do
    local before = call('HGET', keys[2], args[at])
    local deleted = not before and call('SISMEMBER', keys[5], args[at]) == 1
    if not (deleted and args[at + 1] == 'deleted' or not deleted and is_still(before, args[at + 1])) then
      return { 'CHANGED' }
    end
    new = new + ((before or args[at + 2] == '') and 0 or 1)
  end
  if new > 0 and call('HLEN', keys[2]) + new > tonumber(args[1]) then
    return { 'FULL' }
  end
  -- These raise before any write where a key has the wrong type.
  call('ZCARD', keys[3])
  call('ZCARD', keys[4])
  call('SCARD', keys[5])
  local freed = #args > 6
  for field, text in pairs(cjson.decode(args[6])) do
    if text == '' then
      freed = call('HDEL', keys[7], field) == 1
    else
      call('HSET', keys[7], field, text)
    end
  end
  if not freed then
    return { 'OK' }
  end
  local number = tonumber(string.match(call('GET', keys[1]) or '0-0', '^(%d+)%-%d+$')) + 1
  local version = whole(number) .. '-' .. args[3]
  local reply = redis.pcall('XADD', keys[6], 'MAXLEN', '=', args[2], version, 'ids', args[4])
  if refused(reply) then
    return reply
  end
  for at = 7, #args, 5 do
    local id, title, title_after = args[at], args[at + 3], args[at + 4]
    if args[at + 2] == '' then
      call('HDEL', keys[2], id)
      call('ZREM', keys[3], id)
      call('SADD', keys[5], id)
    else
      call('HSET', keys[2], id, args[at + 2])
      call('ZADD', keys[3], 0, id)
      call('SREM', keys[5], id)
    end
    if title ~= '' and title ~= title_after then
      call('ZREM', keys[4], title)
    end
    if title_after ~= '' then
      call('ZADD', keys[4], 0, title_after)
    end
  end
  call('SET', keys[1], version)
  return { 'OK', version }
end)

-- keys: a string. args: SHA-1 of what it was, what it becomes.
register('put_text', {}, function(keys, args)
  if not is_still(redis.call('GET', keys[1]), args[1]) then
    return { 'CHANGED' }
  end
  redis.call('SET', keys[1], args[2])
  return { 'OK' }
end)

-- keys: access. args: how many keys there were when it was decided, how many go, these, then those that may operate and
-- stay, '' where none has to: removes them if there are as many still, and one of the latter.
register('remove_keys', ALWAYS, function(keys, args)
  local n, stays = tonumber(args[2]), false
  for i = 3 + n, #args do
    stays = stays or args[i] == '' or redis.call('HEXISTS', keys[1], args[i]) == 1
  end
  if not stays or redis.call('HLEN', keys[1]) ~= tonumber(args[1]) then
    return { 'CHANGED' }
  end
  return { 'OK', redis.call('HDEL', keys[1], unpack(args, 3, 2 + n)) }
end)

-- Makes a user known, of whom nothing may be but attributes. One who was forgotten goes on above the mark of that.
local function make_known(user, forgotten, digest)
  local before = redis.call('HGET', forgotten, digest)
  redis.call('HSET', user, 'n', before and whole(tonumber(before) + 1) or '0')
end

-- Has the records of a user be behind, as these have other attributes to rest on: to what each has seen comes a zero
-- before it. It stays as it is, with its check, for what only a fit learns.
local function outdate(user)
  local known, without_events = redis.call('HGETALL', user), redis.call('HGET', user, 'n') == '0'
  for at = 1, #known, 2 do
    local field, record = known[at], known[at + 1]
    if string.match(field, '^g%d+$') and without_events then
      -- It has nothing of a fit, and would be current as it is.
      redis.call('HDEL', user, field)
    elseif string.match(field, '^g%d+$') and #record >= 8 and counter(record) > 0 then
      redis.call('HSET', user, field, struct.pack('<I8', 0) .. record)
    end
  end
end

-- keys: epochs, attributes of a user, list of users with attributes, then for each epoch: counts, forgotten, user. args:
-- expected epochs, SHA-1 of what they were, what they become ('': none), digest, id. Since when they are these stands
-- beside them, after every user of the partition who was forgotten before, whatever the clock says, so that an erasure
-- that is seen through later leaves what came after it; and beside the records (`described`), where it never falls: a
-- record that rests on earlier ones is refused.
register('put_attributes', {}, function(keys, args)
  if not is_still(redis.call('HGET', keys[2], 'value'), args[2]) then
    return { 'CHANGED' }
  end
  local since = now_ms()
  for at = 4, #keys, 3 do
    -- These raise before any write where a key has the wrong type.
    redis.call('HLEN', keys[at + 1])
    for _, before in ipairs({ redis.call('HGET', keys[at], 'floor'), redis.call('HGET', keys[at + 2], 'described') }) do
      since = math.max(since, tonumber(before or '0') + 1)
    end
  end
  for at = 4, #keys, 3 do
    local user = keys[at + 2]
    if redis.call('HEXISTS', user, 'n') == 0 then
      make_known(user, keys[at + 1], args[4])
    end
    redis.call('HSET', user, 'described', whole(since))
    outdate(user)
  end
  list_users(keys[3])
  if args[3] == '' then
    redis.call('UNLINK', keys[2])
    redis.call('ZREM', keys[3], args[5])
  else
    redis.call('ZADD', keys[3], 0, args[5])
    redis.call('HSET', keys[2], 'value', args[3], 'at', whole(since))
  end
  return { 'OK' }
end, expecting)

-- keys: forgotten, then of each user attributes and user. args: digests joined. Users of whom attributes are known are known
-- themselves from here on: of these a reader makes the prior that the attributes give. One who was forgotten since the
-- attributes were read stays so.
register('know_users', {}, function(keys, args)
  for u = 1, (#keys - 1) / 2 do
    local user = keys[2 * u + 1]
    if redis.call('EXISTS', keys[2 * u]) == 1 and redis.call('HEXISTS', user, 'n') == 0 then
      make_known(user, keys[1], string.sub(args[1], 16 * u - 15, 16 * u))
    end
  end
  return { 'OK' }
end)

-- keys: list of users with attributes, then attributes of each user. args: their ids. Lists those who have any: who was
-- forgotten since they were found stays out. Without users it says that the list has all, by an empty id.
register('list_attributes', {}, function(keys, args)
  list_users(keys[1])
  for u, id in ipairs(args) do
    if redis.call('EXISTS', keys[u + 1]) == 1 then
      redis.call('ZADD', keys[1], 0, id)
    end
  end
  if #args == 0 then
    redis.call('ZADD', keys[1], 0, '')
  end
  return { 'OK' }
end)

-- keys: attributes of a user, user, history, list of users with attributes. args: when the user was forgotten, in
-- milliseconds, and the id. Of one without a history
-- nothing stays, of another one no record that rests on them.
register('erase_attributes', ALWAYS, function(keys, args)
  local is_hash = redis.call('TYPE', keys[1]).ok == 'hash'
  local at = is_hash and tonumber(redis.call('HGET', keys[1], 'at') or '')
  if redis.call('EXISTS', keys[1]) == 1 and (not at or at <= tonumber(args[1])) then
    redis.call('UNLINK', keys[1])
    if redis.call('EXISTS', keys[3]) == 0 then
      redis.call('UNLINK', keys[2])
    else
      outdate(keys[2])
    end
  end
  if redis.call('EXISTS', keys[1]) == 0 then
    list_users(keys[4])
    redis.call('ZREM', keys[4], args[2])
  end
  return { 'OK' }
end)

-- keys: live. args: fence, what has no room left and until when that is believed, or ''.
register('say_full', ALWAYS, function(keys, args)
  if args[2] == '' then
    redis.call('HDEL', keys[1], 'full')
  else
    redis.call('HSET', keys[1], 'full', args[2])
  end
  return { 'OK' }
end, led)

-- keys: a hash. args: how many fields are set, these with their values, then fields that go. Answers how many went.
register('change_fields', ALWAYS, function(keys, args)
  local sets = 2 * tonumber(args[1])
  if sets > 0 then
    redis.call('HSET', keys[1], unpack(args, 2, 1 + sets))
  end
  local gone = #args > 1 + sets and redis.call('HDEL', keys[1], unpack(args, 2 + sets)) or 0
  return { 'OK', gone }
end)
