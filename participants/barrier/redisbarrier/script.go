package redisbarrier

import "github.com/redis/go-redis/v9"

// Script is a business of one's own in Lua: the body of a function with KEYS and ARGV. It returns nothing if it is done,
// or "refused" or "ongoing" and a reason. It looks at everything first and writes then: Redis undoes nothing, and what a
// script wrote before it failed, or before it refused, stands, while its call counts as not done. Make it once and use it
// many times.
type Script struct{ script *redis.Script }

// NewScript returns the script with this body.
func NewScript(body string) *Script {
	return &Script{redis.NewScript("local function business(KEYS, ARGV)\n" + body + "\nend\n" + barrierScript)}
}

// plain is for changes.
var plain = redis.NewScript("local business = nil\n" + barrierScript)

// barrierScript first reads and judges, then writes: up to its first write every return leaves all as it was.
const barrierScript = `
local p = cjson.decode(ARGV[1])

local raise, floor = {}, nil
for _, f in ipairs(p.fences) do
	local row = redis.call('HMGET', KEYS[f.key], 'epoch', 'floor', 'copied')
	if not (row[1] and row[2] and row[3]) then
		return {'nofence', tostring(f.slot)}
	end
	if f.epoch == 0 then
		if row[3] ~= '0' then
			return {'copy', tostring(f.slot)}
		end
	elseif f.epoch < tonumber(row[1]) then
		return {'stale', tostring(f.slot), row[1]}
	elseif f.epoch > tonumber(row[1]) then
		raise[#raise + 1] = f
	end
	floor = floor or tonumber(row[2])
end

local own = redis.call('GET', KEYS[1])
local undone = p.undone > 0 and redis.call('GET', KEYS[p.undone])
local rival = p.rival > 0 and redis.call('GET', KEYS[p.rival])
local against = nil
for _, o in ipairs(p.opposites) do
	if redis.call('GET', KEYS[o.key]) then
		against = o.op
	end
end
if p.time >= 0 and p.time <= floor and not (own or undone or rival or against) then
	return {'floor'}
end

local function mark(key, value)
	if p.ttl > 0 then
		redis.call('SET', key, value, 'EX', p.ttl)
	else
		redis.call('SET', key, value)
	end
end
local function raised()
	for _, f in ipairs(raise) do
		redis.call('HSET', KEYS[f.key], 'epoch', string.format('%.0f', f.epoch))
	end
end

if p.query then
	raised()
	if not own then
		mark(KEYS[1], 'rollback')
		own = 'rollback'
	end
	if own == 'rollback' then
		return {'undecided'}
	end
	return {'done'}
end
if own and p.msg then
	return {'duplicate'}
end
if against then
	return {'contradiction', against}
end
if p.undone > 0 and not undone then
	raised()
	mark(KEYS[p.undone], 'rollback')
	if not own then
		mark(KEYS[1], 'op')
	end
	return {'empty'}
end
if own then
	if own == 'rollback' then
		return {'late'}
	end
	raised()
	return {'repeated'}
end

if business then
	local keys, args = {}, {}
	for i = p.business + 1, #KEYS do
		keys[#keys + 1] = KEYS[i]
	end
	for i = 2, #ARGV do
		args[#args + 1] = ARGV[i]
	end
	local answer, reason = business(keys, args)
	if answer == 'refused' or answer == 'ongoing' then
		return {answer, tostring(reason or '')}
	elseif answer then
		return redis.error_reply('a business script returns nothing, or refused or ongoing with a reason')
	end
else
	local at = {}
	for _, c in ipairs(p.changes) do
		local id = KEYS[c.key] .. '\0' .. c.field
		local v = at[id]
		if not v then
			local raw
			if c.field == '' then
				raw = redis.call('GET', KEYS[c.key])
			else
				raw = redis.call('HGET', KEYS[c.key], c.field)
			end
			if not raw then
				if not c.create and not at[KEYS[c.key]] and (c.field == '' or redis.call('EXISTS', KEYS[c.key]) == 0) then
					return {'refused', 'there is no ' .. KEYS[c.key]}
				end
				raw = '0'
			end
			v = string.match(raw, '^%-?%d+$') and tonumber(raw)
			if not v or v > 9007199254740991 or v < -9007199254740991 then
				return redis.error_reply(KEYS[c.key] .. ' holds no integer that can be counted with')
			end
		end
		local by = tonumber(c.by)
		v = v + by
		if v > 9007199254740991 or v < -9007199254740991 then
			return {'refused', KEYS[c.key] .. ' would be too large'}
		end
		if by < 0 and v < -c.overdraft then
			return {'refused', 'there is not enough in ' .. KEYS[c.key] .. ' ' .. c.field}
		end
		at[id] = v
		at[KEYS[c.key]] = true -- it exists by then
	end
end

raised()
mark(KEYS[1], 'op')
for _, c in ipairs(p.changes) do
	if c.field == '' then
		redis.call('INCRBY', KEYS[c.key], c.by)
	else
		redis.call('HINCRBY', KEYS[c.key], c.field, c.by)
	end
end
return {'done'}
`
